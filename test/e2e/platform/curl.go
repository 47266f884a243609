package platform

import (
	"context"
	"fmt"
	"regexp"
	"strconv"

	corev1 "k8s.io/api/core/v1"
)

// Answer is what curl in a pod got.
type Answer struct {
	Output
	// Status is the final answer's, Connect the proxy's to CONNECT; 0 without one.
	Status, Connect int
}

func (a Answer) String() string {
	return fmt.Sprintf("status %d, CONNECT %d, %s", a.Status, a.Connect, a.Output)
}

var written = regexp.MustCompile(`(?s)^(.*)\n#curl (\d+) (\d+)\n?$`)

// Curl runs curl with args in the pod. Stdout holds all headers, those of the proxy's
// answer to CONNECT included, and the body.
func (p *Platform) Curl(ctx context.Context, pod *corev1.Pod, args ...string) (Answer, error) {
	command := append([]string{"curl", "-sS", "-i", "--max-time", "10", "-w", "\n#curl %{http_code} %{http_connect}\n"}, args...)
	out, err := p.Exec(ctx, pod, command...)
	if err != nil {
		return Answer{Output: out}, err
	}
	match := written.FindStringSubmatch(out.Stdout)
	if match == nil {
		return Answer{Output: out}, fmt.Errorf("curl in pod %s/%s did not say how it ended: %s", pod.Namespace, pod.Name, out)
	}
	a := Answer{Output: out}
	a.Stdout = match[1]
	a.Status, _ = strconv.Atoi(match[2])
	a.Connect, _ = strconv.Atoi(match[3])
	return a, nil
}
