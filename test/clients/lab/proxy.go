package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

// BuildProxy builds the egress-proxy binary as it ships, into dir.
func BuildProxy(ctx context.Context, dir string) (string, error) {
	file := filepath.Join(dir, "egress-proxy")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", file, "github.com/sandbox-egress/sandbox-egress/cmd/egress-proxy")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building egress-proxy: %w: %s", err, out)
	}
	return file, nil
}

// Issuer signs the tokens of one run.
type Issuer struct {
	key *token.SigningKey
	// JWKS is the file with the public key, for the proxy.
	JWKS string
}

// NewIssuer writes the JWKS file into dir.
func NewIssuer(dir string) (*Issuer, error) {
	key, err := token.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	set, err := token.NewKeySet(key.Public())
	if err != nil {
		return nil, err
	}
	data, err := set.MarshalJWKS()
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "jwks.json")
	return &Issuer{key: key, JWKS: file}, os.WriteFile(file, data, 0o644)
}

// Token signs a bound token for the container that reaches the hosts.
func (i *Issuer) Token(containerID string, hosts ...string) (string, error) {
	claims, err := token.NewClaims(token.MintOptions{
		Now: time.Now(), TTL: 4 * time.Hour, ContainerID: containerID, AllowedHosts: hosts, ContainerBinding: true,
	})
	if err != nil {
		return "", err
	}
	return i.key.Mint(claims)
}

// Process is a server that runs in a namespace.
type Process struct {
	PID int
	// Log is the file with its standard output, and Errors the one with its standard error.
	Log, Errors string

	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Start starts a server in n; its output goes to files in dir that are named after name.
func (n *Namespace) Start(ctx context.Context, name, dir string, o Options, argv ...string) (*Process, error) {
	p := &Process{
		Log: filepath.Join(dir, name+".log"), Errors: filepath.Join(dir, name+".err"),
		cmd: n.Command(ctx, o, argv...), done: make(chan struct{}),
	}
	stdout, err := os.Create(p.Log)
	if err != nil {
		return nil, err
	}
	defer stdout.Close()
	stderr, err := os.Create(p.Errors)
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	p.cmd.Stdout, p.cmd.Stderr = stdout, stderr
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	p.PID = p.cmd.Process.Pid
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Ready waits until the server accepts connections on address, or has ended.
func (p *Process) Ready(ctx context.Context, n *Namespace, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	go func() {
		select {
		case <-p.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := n.WaitListening(ctx, address); err != nil {
		last, _ := os.ReadFile(p.Errors)
		return fmt.Errorf("%s: %w: %s", p.cmd.Args[len(p.cmd.Args)-1], err, strings.TrimSpace(string(last)))
	}
	return nil
}

// Stop ends the server: SIGTERM, and SIGKILL after grace.
func (p *Process) Stop(grace time.Duration) error {
	if err := unix.Kill(p.PID, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(grace):
	}
	err := KillGroup(p.cmd)
	<-p.done
	return err
}

// Ended reports whether the server has ended, and how.
func (p *Process) Ended() (bool, error) {
	select {
	case <-p.done:
		return true, p.err
	default:
		return false, nil
	}
}

// ResolvConf writes a resolv.conf(5) into dir; without a server nothing resolves.
func ResolvConf(dir string, server netip.Addr) (string, error) {
	content := "# no DNS here\n"
	if server.IsValid() {
		content = "nameserver " + server.String() + "\noptions timeout:2 attempts:2\n"
	}
	f, err := os.CreateTemp(dir, "resolv.conf-")
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := f.Chmod(0o644); err != nil {
		return "", err
	}
	_, err = f.WriteString(content)
	return f.Name(), err
}
