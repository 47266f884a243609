package node_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/sandbox-egress/sandbox-egress/test/cluster/build"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/image"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/internet"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/node"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/pki"
	"github.com/sandbox-egress/sandbox-egress/test/cluster/process"
)

// The tests here start real clusters, in directories of their own, and need
// root. They run in the order in which they are written.

func testConfig(t *testing.T) node.Config {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test starts a cluster and needs root")
	}
	return node.Config{
		StateDir: "/run/sandbox-egress-node-test",
		DataDir:  "/var/lib/sandbox-egress-node-test",
		Log:      func(line string) { t.Log(line) },
	}
}

func TestClusterWorks(t *testing.T) {
	ctx := t.Context()
	config := testConfig(t)
	before := snapshot(t, config)
	begin := time.Now()
	cluster, err := node.Up(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("up after %.1f s", time.Since(begin).Seconds())
	t.Cleanup(func() {
		if err := node.Down(context.Background(), config); err != nil {
			t.Error(err)
		}
		before.check(t, config)
	})

	s := suite{t: t, cluster: cluster}
	if _, err := node.Up(ctx, config); err == nil || !strings.Contains(err.Error(), "already running") {
		t.Fatalf("second Up beside a running cluster: %v", err)
	}
	s.startWorkload(t)
	t.Run("logs and exec work", s.logsAndExec)
	t.Run("a pod resolves names of the cluster and of the internet", s.dns)
	t.Run("the internet serves its protocols and logs who called", s.internet)
	t.Run("the API server reaches a webhook through its Service", s.webhook)
	t.Run("a default-deny blocks every way out and an allow opens one", s.policies)
	t.Run("a policy change cuts an established connection", s.cutEstablished)
	t.Run("enforcement can be switched off and on", s.enforcementSwitch)
	t.Run("nothing new passes while the enforcer is down", s.enforcerDown)
	t.Run("pods keep talking while the API server and the kubelet are down", s.outages)
	t.Run("a client of the test process reaches the API server", s.restClient)
}

func TestUpThatIsInterruptedLeavesNothing(t *testing.T) {
	config := testConfig(t)
	before := snapshot(t, config)
	for _, after := range []time.Duration{300 * time.Millisecond, 2500 * time.Millisecond, 5 * time.Second} {
		ctx, cancel := context.WithCancelCause(t.Context())
		interrupted := errors.New("interrupted by the test")
		timer := time.AfterFunc(after, func() { cancel(interrupted) })
		cluster, err := node.Up(ctx, config)
		timer.Stop()
		cancel(nil)
		if err == nil {
			t.Errorf("Up was interrupted after %v and succeeded: %v", after, cluster.Kubeconfig())
			if err := node.Down(t.Context(), config); err != nil {
				t.Error(err)
			}
		}
		before.check(t, config)
	}
}

func TestUpCleansUpAfterACrash(t *testing.T) {
	ctx := t.Context()
	config := testConfig(t)
	before := snapshot(t, config)
	cluster, err := node.Up(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := node.Down(context.Background(), config); err != nil {
			t.Error(err)
		}
		before.check(t, config)
	})
	// As if the machine's OOM killer had come by: records without processes,
	// and processes, shims and containers without a record.
	for _, name := range []string{node.Containerd, node.Etcd} {
		if err := cluster.StopComponent(ctx, name, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(filepath.Join(config.StateDir, "processes")); err != nil {
		t.Fatal(err)
	}
	if _, err := node.Attach(config); !errors.Is(err, node.ErrNotRunning) {
		t.Fatalf("Attach to a crashed cluster: %v, want ErrNotRunning", err)
	}
	cluster, err = node.Up(ctx, config)
	if err != nil {
		t.Fatalf("Up after a crash: %v", err)
	}
	for _, s := range cluster.Status(ctx) {
		if !s.Running || s.Problem != "" {
			t.Errorf("after the second Up: %+v", s)
		}
	}
}

func TestForeignDirectoriesAreNotTouched(t *testing.T) {
	config := testConfig(t)
	config.DataDir = t.TempDir()
	file := filepath.Join(config.DataDir, "precious")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := node.Up(t.Context(), config); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("Up with a foreign data directory: %v", err)
	}
	if err := node.Down(t.Context(), config); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}

type suite struct {
	t       *testing.T
	cluster *node.Cluster
}

func (s suite) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.cluster.Kubectl(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func (s suite) apply(t *testing.T, manifest []byte) {
	t.Helper()
	if _, err := s.cluster.KubectlStdin(t.Context(), manifest, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

func (s suite) applyFile(t *testing.T, name string) {
	t.Helper()
	manifest, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	s.apply(t, manifest)
}

// inClient runs a shell command in the client pod.
func (s suite) inClient(t *testing.T, script string) (string, error) {
	t.Helper()
	out, err := s.cluster.Kubectl(t.Context(), "-n", "work", "exec", "client", "--", "sh", "-c", script)
	return strings.TrimSpace(string(out)), err
}

// reaches says whether the client pod gets an HTTP answer from url.
func (s suite) reaches(t *testing.T, url string) bool {
	t.Helper()
	out, _ := s.inClient(t, "curl -sSk --max-time 2 -o /dev/null -w '%{http_code}' "+url)
	return out != "" && out != "000"
}

// eventually allows for the time that objects take to reach the enforcer.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if condition() {
			return
		}
	}
	t.Fatalf("%s: not within 20 s", what)
}

func (s suite) startWorkload(t *testing.T) {
	t.Helper()
	cache, err := build.DefaultCache()
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(s.cluster.Internet().CAPath)
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "sandbox.tar")
	if err := image.Sandbox(t.Context(), filepath.Join(cache, "images"), ca, archive); err != nil {
		t.Fatal(err)
	}
	if err := s.cluster.LoadImage(t.Context(), archive); err != nil {
		t.Fatal(err)
	}
	s.applyFile(t, "workload.yaml")
	s.kubectl(t, "-n", "work", "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s")
}

func (s suite) podIP(t *testing.T, name string) string {
	t.Helper()
	ip := s.kubectl(t, "-n", "work", "get", "pod", name, "-o", "jsonpath={.status.podIP}")
	if _, err := netip.ParseAddr(ip); err != nil {
		t.Fatalf("pod %s: %v", name, err)
	}
	return ip
}

func (s suite) logsAndExec(t *testing.T) {
	if out, err := s.inClient(t, "id -u"); err != nil || out != "1000" {
		t.Errorf("exec: %q, %v", out, err)
	}
	if !s.reaches(t, "http://server.work/logged-path") {
		t.Error("the client does not reach the server through its Service")
	}
	eventually(t, "the request in the pod's log", func() bool {
		return strings.Contains(s.kubectl(t, "-n", "work", "logs", "server"), "GET /logged-path")
	})
}

func (s suite) dns(t *testing.T) {
	tests := map[string]string{
		"server.work.svc.cluster.local": s.kubectl(t, "-n", "work", "get", "service", "server", "-o", "jsonpath={.spec.clusterIP}"),
		"allowed.example":               internet.SiteA,
		"anything.evil-site.example":    internet.SiteEvil,
	}
	for name, want := range tests {
		got, err := s.inClient(t, "getent ahostsv4 "+name+" | cut -d' ' -f1 | head -1")
		if err != nil || got != want {
			t.Errorf("%s is %q (%v), want %s", name, got, err, want)
		}
	}
	if got, err := s.inClient(t, "getent ahostsv4 no-such-name.example"); err == nil {
		t.Errorf("no-such-name.example resolves to %q", got)
	}
	record := internet.Record{Addresses: []netip.Addr{netip.MustParseAddr(internet.SiteB)}}
	if err := s.cluster.Internet().SetRecord(t.Context(), "allowed.example", record); err != nil {
		t.Fatal(err)
	}
	if got, err := s.inClient(t, "getent ahostsv4 allowed.example | cut -d' ' -f1 | head -1"); err != nil || got != internet.SiteB {
		t.Errorf("after a change of the record: %q (%v), want %s", got, err, internet.SiteB)
	}
}

func (s suite) internet(t *testing.T) {
	since, ip := time.Now(), s.podIP(t, "client")
	tests := map[string]struct{ script, want string }{
		"http":        {"curl -sS --max-time 5 http://api.example.com/x", "sandbox-egress test origin: GET api.example.com /x"},
		"https":       {"curl -sS --max-time 5 https://api.example.com/x", "sandbox-egress test origin: GET api.example.com /x"},
		"git clone":   {"git clone -q https://api.example.com/git/demo.git /tmp/clone && cat /tmp/clone/README.md", "A repository of the test internet."},
		"git push":    {"cd /tmp/clone && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x && git push -q origin HEAD:pushed && echo pushed", "pushed"},
		"tcp echo":    {"echo hello | nc -N -w 2 198.51.100.20 5432", "hello"},
		"udp echo":    {"echo hello | nc -u -w 1 198.51.100.20 7", "hello"},
		"stream":      {"curl -sS --max-time 5 'http://api.example.com/stream?lines=3&interval=50ms' | wc -l", "3"},
		"bytes":       {"curl -sS --max-time 5 http://api.example.com/bytes/1000000 | wc -c", "1000000"},
		"metadata":    {"curl -sS --max-time 5 http://169.254.169.254/latest", "sandbox-egress test origin: GET 169.254.169.254 /latest"},
		"rogue DNS":   {`python3 -c 'import socket; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout(2); s.sendto(b"\x12\x34\1\0\0\1\0\0\0\0\0\0\7allowed\7example\0\0\1\0\1",("203.0.113.53",53)); print(len(s.recv(512))>12)'`, "True"},
		"unreachable": {"curl -sS --max-time 1 http://unreachable.example/ || echo failed", "failed"},
	}
	// git push needs the clone.
	for _, name := range []string{"http", "https", "git clone", "git push", "tcp echo", "udp echo", "stream", "bytes", "metadata", "rogue DNS", "unreachable"} {
		test := tests[name]
		if got, err := s.inClient(t, test.script); err != nil || got != test.want {
			t.Errorf("%s: %q (%v), want %q", name, got, err, test.want)
		}
	}
	found := map[string]bool{}
	eventually(t, "the calls in the log", func() bool {
		events, err := s.cluster.Internet().Events(since)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if host, _, _ := net.SplitHostPort(e.Client); host == ip {
				found[fmt.Sprint(e.Kind, " ", e.Server, " ", e.SNI)] = true
			}
		}
		for _, want := range []string{
			"connect 198.51.100.10:443 ", "http 198.51.100.10:80 ", "http 198.51.100.10:443 api.example.com",
			"tcp 198.51.100.20:5432 ", "udp 198.51.100.20:7 ", "http 169.254.169.254:80 ", "dns 203.0.113.53:53 ",
		} {
			if !found[want] {
				return false
			}
		}
		return true
	})
}

func (s suite) webhook(t *testing.T) {
	authority, err := pki.NewAuthority("webhook of the test")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Issue(pki.Request{CommonName: "webhook", DNSNames: []string{"webhook.work.svc"}})
	if err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile("testdata/webhook.py")
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(map[string]string{"webhook.py": string(script), "tls.crt": string(pair.Cert), "tls.key": string(pair.Key)})
	if err != nil {
		t.Fatal(err)
	}
	s.apply(t, fmt.Appendf(nil, `
apiVersion: v1
kind: ConfigMap
metadata: {name: webhook, namespace: work}
data: %s
---
apiVersion: v1
kind: Pod
metadata: {name: webhook, namespace: work, labels: {app: webhook}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: webhook
    image: %s
    imagePullPolicy: Never
    command: [python3, /webhook/webhook.py]
    readinessProbe: {tcpSocket: {port: 8443}, periodSeconds: 1}
    volumeMounts: [{name: webhook, mountPath: /webhook}]
  volumes: [{name: webhook, configMap: {name: webhook}}]
---
apiVersion: v1
kind: Service
metadata: {name: webhook, namespace: work}
spec:
  selector: {app: webhook}
  ports: [{port: 443, targetPort: 8443}]
`, data, image.SandboxRef))
	s.kubectl(t, "-n", "work", "wait", "--for=condition=Ready", "pod/webhook", "--timeout=60s")
	s.apply(t, fmt.Appendf(nil, `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: webhook}
webhooks:
- name: webhook.work.svc
  admissionReviewVersions: [v1]
  sideEffects: None
  timeoutSeconds: 5
  clientConfig:
    service: {name: webhook, namespace: work}
    caBundle: %s
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [serviceaccounts]}]
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: work}}
`, base64.StdEncoding.EncodeToString(authority.PEM)))
	eventually(t, "the webhook's refusal", func() bool {
		_, err = s.cluster.Kubectl(t.Context(), "-n", "work", "create", "serviceaccount", "refused", "--dry-run=server")
		return err != nil && strings.Contains(err.Error(), "refused by the webhook of the test")
	})
	s.kubectl(t, "delete", "validatingwebhookconfiguration", "webhook")
}

// waysOut are the places that a sandbox must not reach directly; all of them
// answer when nothing is in the way.
func (s suite) waysOut(t *testing.T) map[string]string {
	return map[string]string{
		"another pod":         "http://" + s.podIP(t, "server") + ":8080/",
		"a Service":           "http://" + s.kubectl(t, "-n", "work", "get", "service", "server", "-o", "jsonpath={.spec.clusterIP}") + "/",
		"the internet":        "http://" + internet.SiteEvil + "/",
		"the metadata server": "http://" + internet.Metadata + "/",
		"the node":            "https://" + node.NodeIP + ":6443/version",
		"the kubelet":         "https://" + node.NodeIP + ":10250/",
		"the API server":      "https://" + node.APIServerIP + "/version",
	}
}

func (s suite) policies(t *testing.T) {
	ways := s.waysOut(t)
	for name, url := range ways {
		if !s.reaches(t, url) {
			t.Errorf("without a policy %s (%s) is not reached", name, url)
		}
	}
	s.applyFile(t, "deny.yaml")
	eventually(t, "default-deny", func() bool { return !s.reaches(t, ways["another pod"]) })
	since, ip := time.Now(), s.podIP(t, "client")
	for name, url := range ways {
		if s.reaches(t, url) {
			t.Errorf("with a default-deny %s (%s) is reached", name, url)
		}
	}
	if out, err := s.inClient(t, "echo x | nc -u -w 1 198.51.100.20 7"); err == nil && out != "" {
		t.Errorf("with a default-deny UDP is answered: %q", out)
	}
	events, err := s.cluster.Internet().Events(since)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if host, _, _ := net.SplitHostPort(e.Client); host == ip {
			t.Errorf("with a default-deny this reached the internet: %+v", e)
		}
	}
	s.applyFile(t, "allow.yaml")
	eventually(t, "the allow", func() bool { return s.reaches(t, ways["another pod"]) })
	if !s.reaches(t, "http://server.work/") {
		t.Error("with an allow for the server and DNS, the server is not reached by its name")
	}
	if s.reaches(t, ways["the internet"]) || s.reaches(t, ways["the node"]) {
		t.Error("the allow for one pod opens other ways")
	}
	s.kubectl(t, "-n", "work", "delete", "networkpolicy", "--all")
	eventually(t, "the end of the policies", func() bool { return s.reaches(t, ways["the internet"]) })
}

// stream starts a transfer in the client pod that never ends by itself, and
// returns a function that counts the lines it has got.
func (s suite) stream(t *testing.T) (lines func() string) {
	t.Helper()
	if _, err := s.inClient(t, "curl -sSN 'http://198.51.100.10/stream?interval=100ms' >/tmp/stream 2>&1 & sleep 1"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = s.inClient(t, "pkill curl") })
	lines = func() string {
		out, err := s.inClient(t, "wc -l </tmp/stream")
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if a := lines(); a == "0" {
		t.Fatal("the stream does not flow")
	}
	return lines
}

func stalled(lines func() string) bool {
	before := lines()
	time.Sleep(700 * time.Millisecond)
	return lines() == before
}

func (s suite) cutEstablished(t *testing.T) {
	lines := s.stream(t)
	if stalled(lines) {
		t.Fatal("the stream stalls without a policy")
	}
	s.applyFile(t, "deny.yaml")
	eventually(t, "the end of the stream", func() bool { return stalled(lines) })
	s.kubectl(t, "-n", "work", "delete", "networkpolicy", "deny")
}

func (s suite) enforcementSwitch(t *testing.T) {
	const url = "http://198.51.100.10/"
	s.applyFile(t, "deny.yaml")
	eventually(t, "default-deny", func() bool { return !s.reaches(t, url) })
	if err := s.cluster.SetEnforcement(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if on, err := s.cluster.Enforcement(t.Context()); err != nil || on {
		t.Errorf("Enforcement: %v, %v", on, err)
	}
	if !s.reaches(t, url) {
		t.Error("without enforcement the policy still holds")
	}
	lines := s.stream(t)
	if err := s.cluster.SetEnforcement(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if s.reaches(t, url) {
		t.Error("after enforcement came back a new connection passes")
	}
	eventually(t, "the end of the stream", func() bool { return stalled(lines) })
	s.kubectl(t, "-n", "work", "delete", "networkpolicy", "deny")
}

func (s suite) enforcerDown(t *testing.T) {
	url := "http://" + s.podIP(t, "server") + ":8080/"
	eventually(t, "the end of the policies", func() bool { return s.reaches(t, url) })
	if err := s.cluster.StopComponent(t.Context(), node.Enforcer, 0); err != nil {
		t.Fatal(err)
	}
	if s.reaches(t, url) {
		t.Error("a new connection passes while no one enforces")
	}
	if err := s.cluster.StartComponent(t.Context(), node.Enforcer); err != nil {
		t.Fatal(err)
	}
	eventually(t, "connections after the enforcer came back", func() bool { return s.reaches(t, url) })
}

func (s suite) outages(t *testing.T) {
	ctx := t.Context()
	uid := s.kubectl(t, "-n", "work", "get", "pod", "client", "-o", "jsonpath={.metadata.uid}/{.status.containerStatuses[0].restartCount}")
	if _, err := s.inClient(t, "(while sleep 0.2; do curl -sS --max-time 1 -o /dev/null http://198.51.100.10/outage; done) >/dev/null 2>&1 &"); err != nil {
		t.Fatal(err)
	}
	flows := func() bool {
		since := time.Now()
		time.Sleep(2 * time.Second)
		events, err := s.cluster.Internet().Events(since)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if e.URI == "/outage" {
				return true
			}
		}
		return false
	}
	if !flows() {
		t.Fatal("the client's requests do not arrive")
	}
	for _, name := range []string{node.APIServer, node.Kubelet} {
		if err := s.cluster.StopComponent(ctx, name, 0); err != nil {
			t.Fatal(err)
		}
		if s.cluster.Running(name) {
			t.Errorf("%s still runs", name)
		}
		if !flows() {
			t.Errorf("no requests arrive while %s is down", name)
		}
		if err := s.cluster.StartComponent(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the node after the outages", func() bool {
		out, err := s.inClient(t, "echo alive")
		return err == nil && out == "alive"
	})
	if now := s.kubectl(t, "-n", "work", "get", "pod", "client", "-o", "jsonpath={.metadata.uid}/{.status.containerStatuses[0].restartCount}"); now != uid {
		t.Errorf("the client pod was restarted: %s, was %s", now, uid)
	}
}

func (s suite) restClient(t *testing.T) {
	config, err := s.cluster.RESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	nodes, err := client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(nodes.Items) != 1 || nodes.Items[0].Name != node.NodeName || nodes.Items[0].Status.NodeInfo.KubeletVersion != "v1.37.2" {
		t.Errorf("nodes: %+v", nodes.Items)
	}
	pod, err := client.CoreV1().Pods("work").Get(t.Context(), "client", metav1.GetOptions{})
	if err != nil || pod.Status.Phase != corev1.PodRunning {
		t.Errorf("client pod: %v, %v", pod.Status.Phase, err)
	}
}

// hostState is what a cluster could leave behind, as far as other programs on
// the machine do not change it too.
type hostState struct {
	mounts, sysctls string
}

func snapshot(t *testing.T, config node.Config) hostState {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	var ours, sysctls strings.Builder
	for line := range strings.Lines(string(mounts)) {
		for _, part := range []string{config.StateDir, config.DataDir, "/var/lib/kubelet", "/var/lib/cni", "/var/log", "/run/netns/cni-"} {
			if strings.Contains(line, part) {
				ours.WriteString(line)
				break
			}
		}
	}
	for _, name := range []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"} {
		value, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		fmt.Fprintf(&sysctls, "%s=%s", name, value)
	}
	return hostState{mounts: ours.String(), sysctls: sysctls.String()}
}

func (before hostState) check(t *testing.T, config node.Config) {
	t.Helper()
	now := snapshot(t, config)
	if now.mounts != before.mounts {
		t.Errorf("mounts are left:\n%s\nbefore:\n%s", now.mounts, before.mounts)
	}
	if now.sysctls != before.sysctls {
		t.Errorf("sysctls differ: %s, before: %s", now.sysctls, before.sysctls)
	}
	for _, dir := range []string{config.StateDir, config.DataDir, config.StateDir + ".lock"} {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left", dir)
		}
	}
	// A network namespace of ours lives exactly as long as a process of ours.
	ids, err := process.WithEnv("SANDBOX_EGRESS_CLUSTER=" + config.StateDir)
	if err != nil || len(ids) > 0 {
		t.Errorf("processes %v are left (%v)", ids, err)
	}
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == config.Cgroup() {
			t.Errorf("cgroup %s is left", path)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
