package platform

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

var (
	//go:embed scripts/probe.py
	probeScript string
	//go:embed scripts/monitor.py
	monitorScript string
	//go:embed scripts/websocket.py
	webSocketScript string
)

// Open marks a target that answered.
const Open = "open"

// Probe tries the targets directly, past any proxy, from the pod and says for each Open or
// why not. See scripts/probe.py for their form.
func (p *Platform) Probe(ctx context.Context, pod *corev1.Pod, targets ...string) (map[string]string, error) {
	out, err := p.Exec(ctx, pod, append([]string{"python3", "-c", probeScript}, targets...)...)
	if err != nil {
		return nil, err
	}
	results := map[string]string{}
	if err := json.Unmarshal([]byte(out.Stdout), &results); err != nil || out.Exit != 0 || len(results) != len(targets) {
		return nil, fmt.Errorf("probe in pod %s/%s: %s", pod.Namespace, pod.Name, out)
	}
	return results, nil
}

// WebSocket sends message to ws://host:port/ws from the pod and returns the echo. mode is
// connect or forward.
func (p *Platform) WebSocket(ctx context.Context, pod *corev1.Pod, mode, host, port, message string) (Output, error) {
	return p.Exec(ctx, pod, "python3", "-c", webSocketScript, mode, host, port, "/ws", message)
}
