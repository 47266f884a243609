package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sandbox-egress/sandbox-egress/api/v1alpha1"
	"github.com/sandbox-egress/sandbox-egress/test/e2e/platform"
)

const (
	namespace = "demo"
	patience  = 3 * time.Minute
)

// scene is what the checks run in: two sandboxes of one policy, and a pod of somebody else.
type scene struct {
	*platform.Platform
	policy              *v1alpha1.SandboxEgress
	one, two, neighbour *corev1.Pod
	begin               time.Time
}

func prepare(ctx context.Context, p *platform.Platform, progress func(string)) (*scene, error) {
	progress("installing the chart")
	if err := p.Install(ctx, p.Chart()); err != nil {
		return nil, err
	}
	if err := freshNamespace(ctx, p); err != nil {
		return nil, err
	}
	s := &scene{
		Platform:  p,
		policy:    platform.Policy(namespace, "agents", "allowed.example", "*.example.org"),
		one:       platform.Sandbox(namespace, "sandbox-1"),
		two:       platform.Sandbox(namespace, "sandbox-2"),
		neighbour: platform.Pod(namespace, "neighbour", "neighbour"),
	}
	s.neighbour.Spec.Containers[0].Command = []string{"python3", "-m", "http.server", "8000", "--directory", "/tmp"}
	progress("applying SandboxEgress demo/agents, which allows allowed.example and *.example.org")
	if err := s.create(ctx, s.policy); err != nil {
		return nil, err
	}
	progress("starting two sandboxes")
	if err := s.create(ctx, s.one, s.two, s.neighbour); err != nil {
		return nil, err
	}
	progress("trying what they may and what they may not do")
	s.begin = time.Now()
	return s, nil
}

// create creates the objects and waits until each is Ready.
func (s *scene) create(ctx context.Context, objects ...client.Object) error {
	for _, o := range objects {
		if err := s.Create(ctx, o); err != nil {
			return err
		}
	}
	for _, o := range objects {
		if err := s.WaitReady(ctx, o, patience); err != nil {
			return err
		}
	}
	return nil
}

// freshNamespace removes what an earlier demo in a cluster that was kept has left.
func freshNamespace(ctx context.Context, p *platform.Platform) error {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
	if err := client.IgnoreNotFound(p.Client.Delete(ctx, ns)); err != nil {
		return err
	}
	for deadline := time.Now().Add(patience); ; {
		err := p.Client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}})
		if !apierrors.IsAlreadyExists(err) {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("namespace %s of an earlier demo does not go away: %w", namespace, err)
		}
		select {
		case <-ctx.Done():
			return errors.Join(errors.New("interrupted"), context.Cause(ctx))
		case <-time.After(time.Second):
		}
	}
}
