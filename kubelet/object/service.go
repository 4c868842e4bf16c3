package object

import (
	"context"
	"slices"

	v1 "k8s.io/api/core/v1"

	"worknode/fault"
	"worknode/kube"
)

// services are all Services of the cluster that have an address, by namespace: a container's environment names those of
// its own. Headless ones are left out by the server (kubelets never name them in an environment).
type services struct {
	synced chan struct{}
	known  bool
	byNS   map[string]map[string]*v1.Service
}

func newServices() services {
	return services{synced: make(chan struct{}), byNS: map[string]map[string]*v1.Service{}}
}

// FollowServices keeps the Services current until ctx ends. It is called once.
func (c *Cache) FollowServices(ctx context.Context) {
	kube.Follow(ctx, c.client, kube.Services, kube.Where{Label: "!" + v1.IsHeadlessService}, c.applyService)
}

func (c *Cache) applyService(d kube.Delta) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.services
	svc, _ := d.Object.(*v1.Service)
	switch d.Op {
	case kube.Put:
		of := s.byNS[svc.Namespace]
		if of == nil {
			of = map[string]*v1.Service{}
			s.byNS[svc.Namespace] = of
		}
		of[svc.Name] = slim(svc)
	case kube.Delete:
		delete(s.byNS[svc.Namespace], svc.Name)
		if len(s.byNS[svc.Namespace]) == 0 {
			delete(s.byNS, svc.Namespace)
		}
	case kube.Synced:
		if !s.known {
			s.known = true
			close(s.synced)
		}
	}
}

// slim keeps what an environment needs: thousands of Services must not weigh on every node.
func slim(in *v1.Service) *v1.Service {
	out := &v1.Service{}
	out.Name, out.Namespace = in.Name, in.Namespace
	out.Spec.ClusterIP, out.Spec.Ports = in.Spec.ClusterIP, in.Spec.Ports
	return out
}

// WaitServices returns when the Services have been listed once.
// Errors: Temporary if ctx ends first.
func (c *Cache) WaitServices(ctx context.Context) error {
	select {
	case <-c.services.synced:
		return nil
	case <-ctx.Done():
		return fault.New(fault.Temporary, "services have not yet been read at least once, cannot construct envvars: %w", ctx.Err())
	}
}

// Services returns those a pod of the namespace may name in its environment: the namespace's own, and kubernetes of the
// default namespace. The order is by name.
func (c *Cache) Services(ns string) []*v1.Service {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]*v1.Service, 0, len(c.services.byNS[ns])+1)
	for _, s := range c.services.byNS[ns] {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *v1.Service) int {
		switch {
		case a.Name < b.Name:
			return -1
		case a.Name > b.Name:
			return 1
		}
		return 0
	})
	if api := c.services.byNS[v1.NamespaceDefault]["kubernetes"]; api != nil && ns != v1.NamespaceDefault {
		out = append(out, api)
	}
	return out
}
