package egressctl

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/sandbox-egress/sandbox-egress/internal/audit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeLogs is pods with logs that tests write and cut.
type fakeLogs struct {
	mu      sync.Mutex
	names   []string
	err     error
	openErr map[string]error
	// logs are the lines of every opening of a pod's log, one element per opening; the
	// last one is repeated, and stays open when follow is set.
	logs  map[string][]string
	opens map[string]int
	from  map[string][]time.Time
}

func (f *fakeLogs) pods(context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.names, f.err
}

func (f *fakeLogs) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeLogs) open(ctx context.Context, pod string, from time.Time, follow bool) (io.ReadCloser, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.opens == nil {
		f.opens, f.from = map[string]int{}, map[string][]time.Time{}
	}
	n := f.opens[pod]
	f.opens[pod]++
	f.from[pod] = append(f.from[pod], from)
	if err := f.openErr[pod]; err != nil {
		return nil, err
	}
	logs := f.logs[pod]
	last := n >= len(logs)-1
	if last {
		n = len(logs) - 1
	}
	text := io.Reader(strings.NewReader(logs[n]))
	if last && follow {
		text = io.MultiReader(text, untilDone{ctx})
	}
	return io.NopCloser(text), nil
}

// untilDone is a log in which nothing more happens.
type untilDone struct{ ctx context.Context }

func (u untilDone) Read([]byte) (int, error) {
	<-u.ctx.Done()
	return 0, u.ctx.Err()
}

// at is a record some seconds after epoch.
func at(seconds int, change func(*audit.Record)) string {
	return line(func(r *audit.Record) {
		r.Time = epoch.Add(time.Duration(seconds) * time.Second)
		change(r)
	})
}

func host(name string) func(*audit.Record) { return func(r *audit.Record) { r.Host = name } }

func observeOnce(t *testing.T, source *fakeLogs, args ...string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	app := &App{In: strings.NewReader(""), Out: &out, Err: &errOut, Now: func() time.Time { return epoch.Add(time.Minute) },
		logs: func(string, string) logSource { return source }}
	code := app.Execute(context.Background(), append([]string{"observe", "agents", "--no-follow"}, args...))
	return result{code, out.String(), errOut.String()}
}

func TestObserveTable(t *testing.T) {
	source := &fakeLogs{names: []string{"p1", "p2"}, logs: map[string][]string{
		"p1": {"starting\n" + at(1, same) + at(2, func(r *audit.Record) {
			r.Event, r.Decision, r.Reason, r.BytesSent, r.BytesReceived = audit.Close, audit.Allow, "eof", 10, 20
		})},
		"p2": {at(3, func(r *audit.Record) {
			r.Decision, r.Reason, r.Rule, r.Pod, r.Host, r.Port = audit.Allow, "", `allowedHosts[0] "x"`, "", "2001:db8::1", 80
		}) + at(4, func(r *audit.Record) {
			r.Decision, r.Reason, r.Pod, r.ContainerID, r.Host, r.Method = audit.Deny, "bad_request_line", "", "", "", ""
		})},
	}}
	want := `TIME                     DECISION   SANDBOX                  METHOD   DESTINATION                              WHY
2026-03-01T12:00:01.000Z deny       pod-1                    CONNECT  new.example.net:443                      host_not_allowed
2026-03-01T12:00:03.000Z allow      c1                       CONNECT  [2001:db8::1]:80                         allowedHosts[0] "x"
2026-03-01T12:00:04.000Z deny       -                        -        -                                        bad_request_line
`
	if r := observeOnce(t, source); r.code != ExitOK || r.out != want {
		t.Errorf("exit %d %s\n%s\nwant\n%s", r.code, r.err, r.out, want)
	}
	observeOnce(t, source, "--closes").want(t, ExitOK, "closed, 10 bytes sent, 20 received  eof")
}

func TestObserveFiltersAndJSON(t *testing.T) {
	first, second := at(1, same), at(2, func(r *audit.Record) { r.Decision, r.Pod, r.ContainerID = audit.Allow, "pod-2", "c2" })
	source := &fakeLogs{names: []string{"p1"}, logs: map[string][]string{"p1": {"[prefix] " + first + second}}}
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"all":             {nil, first + second},
		"pod":             {[]string{"--pod", "pod-2"}, second},
		"container":       {[]string{"--container-id", "c1"}, first},
		"decision":        {[]string{"--decision", "deny,would_deny"}, first},
		"reason":          {[]string{"--reason", "nothing"}, ""},
		"both must match": {[]string{"--pod", "pod-2", "--decision", "deny"}, ""},
		"since":           {[]string{"--since", "58500ms"}, second},
	} {
		t.Run(name, func(t *testing.T) {
			r := observeOnce(t, source, append([]string{"-o", "json"}, tc.args...)...)
			if r.code != ExitOK || r.out != tc.want {
				t.Errorf("exit %d %s\n%s\nwant\n%s", r.code, r.err, r.out, tc.want)
			}
		})
	}
}

func TestObserveErrors(t *testing.T) {
	source := &fakeLogs{names: []string{"p1"}, logs: map[string][]string{"p1": {""}}}
	observeOnce(t, source, "--decision", "denied").want(t, ExitError, "--decision")
	observeOnce(t, source, "--since", "-1s").want(t, ExitError, "--since")
	observeOnce(t, source, "-o", "yaml").want(t, ExitError, "--output")
	observeOnce(t, &fakeLogs{}).want(t, ExitError, "no proxy pod found")
	observeOnce(t, &fakeLogs{err: errors.New("forbidden")}).want(t, ExitError, "forbidden")
	observeOnce(t, &fakeLogs{names: []string{"p1"}, openErr: map[string]error{"p1": errors.New("gone")}}).want(t, ExitError, "logs of pod p1: gone")
	run(t, "", "observe").want(t, ExitError, "POLICY is missing")
	run(t, "", "observe", "agents", "--kubeconfig", "/nonexistent").want(t, ExitError, "--kubeconfig")
}

// follow runs a tail and hands the hosts it shows to the test.
func follow(t *testing.T, source *fakeLogs) (hosts <-chan string, warnings func() []string, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	shown := make(chan string, 100)
	result := make(chan error, 1)
	var mu sync.Mutex
	var warned []string
	tl := &tail{source: source, from: epoch, follow: true, now: func() time.Time { return epoch }, poll: time.Millisecond,
		warn: func(err error) {
			mu.Lock()
			defer mu.Unlock()
			warned = append(warned, err.Error())
		}}
	go func() {
		result <- tl.run(ctx, func(_ string, r *audit.Record) error {
			shown <- r.Host
			return nil
		})
	}()
	return shown, func() []string {
			mu.Lock()
			defer mu.Unlock()
			return append([]string(nil), warned...)
		}, func() error {
			cancel()
			return <-result
		}
}

func expect(t *testing.T, hosts <-chan string, want string) {
	t.Helper()
	select {
	case got := <-hosts:
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("%s did not come", want)
	}
}

func TestObserveFollowsPodsThatComeAndGo(t *testing.T) {
	source := &fakeLogs{logs: map[string][]string{"p1": {at(1, host("one.example"))}, "p2": {at(2, host("two.example"))}}}
	hosts, warnings, stop := follow(t, source)
	source.set(func() { source.names = []string{"p1"} })
	expect(t, hosts, "one.example")
	source.set(func() { source.names, source.err = nil, errors.New("API server is away") })
	for !strings.Contains(strings.Join(warnings(), "\n"), "API server is away") {
		time.Sleep(time.Millisecond)
	}
	source.set(func() { source.names, source.err = []string{"p2"}, nil })
	expect(t, hosts, "two.example")
	if err := stop(); err != nil {
		t.Error(err)
	}
	if len(hosts) != 0 {
		t.Errorf("%d records too many", len(hosts))
	}
}

func TestObserveReopensALogWithoutRepeatingItself(t *testing.T) {
	a, b, c := at(10, host("a.example")), at(11, host("b.example")), at(12, host("c.example"))
	source := &fakeLogs{names: []string{"p1"}, logs: map[string][]string{"p1": {a + b, b, a + b + c}}}
	hosts, _, stop := follow(t, source)
	for _, want := range []string{"a.example", "b.example", "c.example"} {
		expect(t, hosts, want)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if len(hosts) != 0 {
		t.Errorf("%d records repeated", len(hosts))
	}
	source.set(func() {
		if got := source.from["p1"]; !got[0].Equal(epoch) || !got[1].Equal(epoch.Add(11*time.Second-overlap)) {
			t.Errorf("opened from %v", got)
		}
	})
}

func TestObserveWarnsOnceAboutALogThatCannotBeRead(t *testing.T) {
	source := &fakeLogs{names: []string{"p1"}, openErr: map[string]error{"p1": errors.New("container is creating")}, logs: map[string][]string{"p1": {at(1, same)}}}
	hosts, warnings, stop := follow(t, source)
	opened := func() (n int) {
		source.set(func() { n = source.opens["p1"] })
		return n
	}
	for opened() < 5 {
		time.Sleep(time.Millisecond)
	}
	source.set(func() { source.openErr = nil })
	expect(t, hosts, "new.example.net")
	if err := stop(); err != nil {
		t.Error(err)
	}
	if got := warnings(); len(got) != 1 {
		t.Errorf("warnings = %q", got)
	}
}

func TestObserveEndsWhenNobodyReads(t *testing.T) {
	source := &fakeLogs{names: []string{"p1"}, logs: map[string][]string{"p1": {at(1, same) + at(2, same)}}}
	want := io.ErrClosedPipe
	tl := &tail{source: source, follow: true, now: func() time.Time { return epoch }, warn: func(error) {}, poll: time.Millisecond}
	if err := tl.run(context.Background(), func(string, *audit.Record) error { return want }); !errors.Is(err, want) {
		t.Errorf("err = %v", err)
	}
}

func TestRecentLinesStaysSmall(t *testing.T) {
	s := &recentLines{at: map[string]time.Time{}}
	for i := range 10000 {
		text := at(i, same)
		if !s.add(text, epoch.Add(time.Duration(i)*time.Second)) || s.add(text, epoch.Add(time.Duration(i)*time.Second)) {
			t.Fatal("a new line counts as repeated, or a repeated one as new")
		}
	}
	if len(s.at) > 20 {
		t.Errorf("%d lines are kept", len(s.at))
	}
}

func TestKubeLogsSelectsTheProxyPodsOfThePolicy(t *testing.T) {
	pod := func(namespace, name, policy, component string, phase corev1.PodPhase) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{
			"egress.sandbox.dev/policy": policy, "egress.sandbox.dev/component": component,
		}}, Status: corev1.PodStatus{Phase: phase}}
	}
	client := fake.NewClientset(
		pod("team-a", "b", "agents", "proxy", corev1.PodRunning),
		pod("team-a", "a", "agents", "proxy", corev1.PodRunning),
		pod("team-a", "starting", "agents", "proxy", corev1.PodPending),
		pod("team-a", "sandbox", "agents", "", corev1.PodRunning),
		pod("team-a", "other-policy", "ci", "proxy", corev1.PodRunning),
		pod("team-b", "other-namespace", "agents", "proxy", corev1.PodRunning),
	)
	k := &kubeLogs{client: client, namespace: "team-a", policy: "agents"}
	names, err := k.pods(context.Background())
	if err != nil || strings.Join(names, " ") != "a b" {
		t.Errorf("pods = %v, %v", names, err)
	}
	stream, err := k.open(context.Background(), "a", epoch, true)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if data, err := io.ReadAll(stream); err != nil || len(data) == 0 {
		t.Errorf("log = %q, %v", data, err)
	}
	bad := &kubeLogs{client: client, namespace: "team-a", policy: "a,b=c"}
	if names, err := bad.pods(context.Background()); err == nil {
		t.Errorf("a policy name that is a selector selects %v", names)
	}
}
