package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/sandbox-egress/sandbox-egress/test/clients/lab"
	"github.com/sandbox-egress/sandbox-egress/test/perf/peer"
)

// peerCommand makes this program one of the two ends; the argument is a job as JSON.
const peerCommand = "perf-peer"

type job struct {
	Origin *peer.Origin
	Load   *peer.Load
}

const (
	holdLimit = 60 * time.Second
	ready     = "ready"
)

func runPeer(arg string) error {
	var j job
	if err := json.Unmarshal([]byte(arg), &j); err != nil {
		return err
	}
	sayReady := func() { fmt.Println(ready) }
	switch {
	case j.Origin != nil:
		return j.Origin.Run(sayReady)
	case j.Load == nil:
		return errors.New("an empty job")
	case j.Load.Mode == peer.Idle:
		release := make(chan struct{})
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin) // until the parent closes it
			close(release)
		}()
		return j.Load.Hold(holdLimit, sayReady, release)
	}
	out, err := j.Load.Run()
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

func peerArgs(j job) ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	arg, err := json.Marshal(j)
	return []string{self, peerCommand, string(arg)}, err
}

// load runs one measurement in the client's namespace.
func (b *bench) load(ctx context.Context, l peer.Load) (peer.Outcome, error) {
	var out peer.Outcome
	args, err := peerArgs(job{Load: &l})
	if err != nil {
		return out, err
	}
	ctx, cancel := context.WithTimeout(ctx, l.WarmUp+l.Duration+30*time.Second)
	defer cancel()
	cmd := b.client.Command(ctx, lab.Options{CPU: loadCPU, Files: openFiles, Nice: priority, Env: os.Environ()}, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	data, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return out, json.Unmarshal(data, &out)
}

// hold opens idle tunnels and calls inspect while they are open.
func (b *bench) hold(ctx context.Context, l peer.Load, inspect func() error) (err error) {
	args, err := peerArgs(job{Load: &l})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, holdLimit+30*time.Second)
	defer cancel()
	cmd := b.client.Command(ctx, lab.Options{CPU: loadCPU, Files: openFiles, Nice: priority, Env: os.Environ()}, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	line, _ := bufio.NewReader(stdout).ReadString('\n')
	if strings.TrimSpace(line) == ready {
		err = inspect()
	}
	_ = stdin.Close()
	if werr := cmd.Wait(); werr != nil {
		return errors.Join(err, fmt.Errorf("%w: %s", werr, strings.TrimSpace(stderr.String())))
	}
	return err
}

func (b *bench) startOrigin(ctx context.Context) error {
	args, err := peerArgs(job{Origin: &peer.Origin{
		Tunnels: netip.MustParseAddrPort("0.0.0.0:443"), Plain: netip.MustParseAddrPort("0.0.0.0:80"),
	}})
	if err != nil {
		return err
	}
	b.originProcess, err = b.outside.Start(ctx, "origin", b.scratch, lab.Options{CPU: loadCPU, Files: openFiles, Nice: priority, Env: os.Environ()}, args...)
	if err != nil {
		return err
	}
	return b.originProcess.Ready(ctx, b.client, directIP+":443")
}
