package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestUsageErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"no command":                {nil, "command"},
		"unknown command":           {[]string{"relay"}, `"relay"`},
		"serve without proxy":       {[]string{"serve"}, "--proxy"},
		"serve with a name":         {[]string{"serve", "--proxy=proxy:8443"}, "proxy:8443"},
		"serve without id":          {[]string{"serve", "--proxy=10.0.0.1:8443"}, "--container-id"},
		"serve without token":       {[]string{"serve", "--proxy=10.0.0.1:8443", "--container-id=a"}, "--token-file"},
		"serve with a wrong port":   {[]string{"serve", "--proxy=10.0.0.1:8443", "--container-id=a", "--token-file=f", "--port=70000"}, "--port"},
		"gate without canary":       {[]string{"gate", "--proxy=10.0.0.1:8443"}, "--canary"},
		"gate without time":         {[]string{"gate", "--proxy=10.0.0.1:8443", "--canary=10.0.0.1:9902", "--timeout=0s"}, "--timeout"},
		"gate with a stray operand": {[]string{"gate", "10.0.0.1:8443"}, "10.0.0.1:8443"},
	} {
		t.Run(name, func(t *testing.T) {
			err := run(context.Background(), tc.args, &bytes.Buffer{}, &bytes.Buffer{})
			if !errors.Is(err, errUsage) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("run = %v, want a usage error that names %s", err, tc.want)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	var out bytes.Buffer
	if err := run(context.Background(), []string{"--version"}, &out, &bytes.Buffer{}); err != nil || out.String() != version+"\n" {
		t.Errorf("printed %q, %v", out.String(), err)
	}
}

func TestGateWritesTheTerminationLog(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	termination := filepath.Join(t.TempDir(), "termination-log")
	if err := os.WriteFile(termination, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	err = run(context.Background(), []string{"gate", "--proxy=" + address, "--canary=" + address, "--timeout=500ms", "--termination-log=" + termination}, &bytes.Buffer{}, &bytes.Buffer{})
	if err == nil || errors.Is(err, errUsage) {
		t.Fatalf("run = %v", err)
	}
	got, readErr := os.ReadFile(termination)
	if readErr != nil || !strings.Contains(string(got), "the egress proxy is not reachable") {
		t.Errorf("termination log %q, %v", got, readErr)
	}
}

func TestServeStopsOnSignalAndHealthFollows(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	address := l.Addr().String()
	l.Close()

	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, []string{"serve", "--proxy=127.0.0.1:1", "--container-id=a", "--token-file=f", "--port=" + port}, &bytes.Buffer{}, &bytes.Buffer{})
	}()
	health := func() error {
		return run(context.Background(), []string{"health", "--address=" + address}, &bytes.Buffer{}, &bytes.Buffer{})
	}
	deadline := time.Now().Add(10 * time.Second)
	for health() != nil {
		if time.Now().After(deadline) {
			t.Fatal("the relay does not become healthy")
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("serve = %v", err)
	}
	if health() == nil {
		t.Error("healthy after the end")
	}
}
