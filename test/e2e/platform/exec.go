package platform

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Output is what a command in a pod printed and how it ended.
type Output struct {
	Stdout, Stderr string
	Exit           int
}

func (o Output) String() string {
	return fmt.Sprintf("exit %d\nstdout: %s\nstderr: %s", o.Exit, strings.TrimSpace(o.Stdout), strings.TrimSpace(o.Stderr))
}

// Exec runs a command in the pod's first container. An exit status other than 0 is no
// error; an error means that the command could not be run.
func (p *Platform) Exec(ctx context.Context, pod *corev1.Pod, command ...string) (Output, error) {
	return p.ExecStdin(ctx, pod, "", command...)
}

// ExecStdin is Exec with an input.
func (p *Platform) ExecStdin(ctx context.Context, pod *corev1.Pod, stdin string, command ...string) (Output, error) {
	args := []string{"-n", pod.Namespace, "exec", pod.Name, "-c", pod.Spec.Containers[0].Name}
	if stdin != "" {
		args = append(args, "-i")
	}
	cmd := p.Cluster.KubectlCommand(ctx, append(append(args, "--"), command...)...)
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := p.Cluster.Run(cmd)
	out := Output{Stdout: stdout.String(), Stderr: stderr.String()}
	if err == nil {
		return out, nil
	}
	var exit *exec.ExitError
	// kubectl passes the command's status on and says so; other failures are its own.
	const marker = "command terminated with exit code "
	if i := strings.LastIndex(out.Stderr, marker); errors.As(err, &exit) && i >= 0 {
		code, convErr := strconv.Atoi(strings.TrimSpace(out.Stderr[i+len(marker):]))
		if convErr == nil {
			out.Exit, out.Stderr = code, out.Stderr[:i]
			return out, nil
		}
	}
	return out, fmt.Errorf("exec in pod %s/%s: %w: %s", pod.Namespace, pod.Name, err, strings.TrimSpace(out.Stderr))
}

// Shell runs a script in the pod.
func (p *Platform) Shell(ctx context.Context, pod *corev1.Pod, script string) (Output, error) {
	return p.Exec(ctx, pod, "sh", "-c", script)
}
