package platform

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Monitor asks from inside a pod without a pause; see scripts/monitor.py.
type Monitor struct {
	platform *Platform
	pod      *corev1.Pod
	file     string
}

// StartMonitor starts one in the pod; it ends with the pod's container.
func (p *Platform) StartMonitor(ctx context.Context, pod *corev1.Pod, allowedURL, deniedURL, direct string) (*Monitor, error) {
	m := &Monitor{platform: p, pod: pod, file: fmt.Sprintf("/tmp/monitor-%d.jsonl", time.Now().UnixNano())}
	out, err := p.Exec(ctx, pod, "sh", "-c", `nohup python3 -c "$1" "$2" "$3" "$4" >"$5" 2>&1 </dev/null &`,
		"monitor", monitorScript, allowedURL, deniedURL, direct, m.file)
	if err == nil && out.Exit != 0 {
		err = fmt.Errorf("monitor in pod %s/%s: %s", pod.Namespace, pod.Name, out)
	}
	return m, err
}

// Report is what a monitor saw.
type Report struct {
	// Allowed attempts that got 200, and those that did not.
	AllowedOK, AllowedFailed int
	// AllowedStatus counts the answers to allowed attempts by status; 0 is none.
	AllowedStatus map[int]int
	// Outage is the longest time from the start of a failed allowed attempt to the end of the
	// next one that got 200, less the stalls in it; Outages describes every one.
	Outage  time.Duration
	Outages []string
	// Stalled is the time in which the monitor itself was not run by its machine.
	Stalled time.Duration
	// Denied counts the answers to denied attempts by status; 0 is none.
	Denied map[int]int
	// DirectOpen and DirectBlocked count attempts past the proxy.
	DirectOpen, DirectBlocked int
	// Last is the start of the last allowed attempt.
	Last time.Time
}

func (r Report) String() string {
	return fmt.Sprintf("allowed: %d ok, %d failed, by status %v, longest outage %s %v; denied by status: %v; direct: %d open, %d blocked; stalled %s",
		r.AllowedOK, r.AllowedFailed, r.AllowedStatus, r.Outage.Round(time.Millisecond), r.Outages, r.Denied, r.DirectOpen, r.DirectBlocked, r.Stalled.Round(time.Millisecond))
}

type attempt struct {
	Kind   string  `json:"k"`
	Start  float64 `json:"t"`
	Length float64 `json:"d"`
	Status int     `json:"s"`
	Error  string  `json:"e"`
}

// Report reads what the monitor saw since then.
func (m *Monitor) Report(ctx context.Context, since time.Time) (Report, error) {
	out, err := m.platform.Exec(ctx, m.pod, "cat", m.file)
	if err != nil {
		return Report{}, err
	}
	return summarise(out.Stdout, since)
}

func summarise(lines string, since time.Time) (Report, error) {
	var attempts []attempt
	scanner := bufio.NewScanner(strings.NewReader(lines))
	for scanner.Scan() {
		var a attempt
		if err := json.Unmarshal(scanner.Bytes(), &a); err != nil {
			return Report{}, fmt.Errorf("monitor wrote %q: %w", scanner.Text(), err)
		}
		if a.Start >= seconds(since) {
			attempts = append(attempts, a)
		}
	}
	if err := scanner.Err(); err != nil {
		return Report{}, err
	}
	r := Report{AllowedStatus: map[int]int{}, Denied: map[int]int{}}
	var stalls []attempt
	for _, a := range attempts {
		if a.Kind == "stall" {
			stalls = append(stalls, a)
			r.Stalled += duration(a.Length)
		}
	}
	var broken *attempt
	var reasons map[string]int
	end := func(at float64) {
		if broken == nil {
			return
		}
		length := duration(at - broken.Start - overlap(stalls, broken.Start, at))
		r.Outage = max(r.Outage, length)
		r.Outages = append(r.Outages, fmt.Sprintf("%s at %s %v", length.Round(time.Millisecond),
			wall(broken.Start).Format("15:04:05.000"), slices.Sorted(maps.Keys(reasons))))
		broken = nil
	}
	for i := range attempts {
		a := attempts[i]
		switch a.Kind {
		case "denied":
			r.Denied[a.Status]++
		case "direct":
			if a.Status == 1 {
				r.DirectOpen++
			} else {
				r.DirectBlocked++
			}
		case "allowed":
			r.Last = wall(a.Start)
			r.AllowedStatus[a.Status]++
			if a.Status == 200 {
				r.AllowedOK++
				end(a.Start + a.Length)
				continue
			}
			r.AllowedFailed++
			if broken == nil {
				broken, reasons = &a, map[string]int{}
			}
			reasons[fmt.Sprintf("%d %s", a.Status, a.Error)]++
		}
	}
	if broken != nil {
		end(seconds(r.Last))
	}
	return r, nil
}

// overlap is how many seconds of the stalls lie between from and to.
func overlap(stalls []attempt, from, to float64) (sum float64) {
	for _, s := range stalls {
		sum += max(0, min(to, s.Start+s.Length)-max(from, s.Start))
	}
	return sum
}

func duration(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixNano()) / 1e9
}

func wall(s float64) time.Time { return time.Unix(0, int64(s*1e9)) }
