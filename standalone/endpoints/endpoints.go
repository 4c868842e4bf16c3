// Package endpoints keeps the EndpointSlices of a standalone node: for each Service with a selector, which pods answer
// for it and whether they are ready. It follows the store itself, so an endpoint changes as soon as the pod's status is
// stored; a change of a pod looks only at the services that select it.
package endpoints

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/uuid"

	"worknode/fault"
	"worknode/standalone/store"
)

type key struct{ namespace, name string }

// service is one Service with a selector and the pods that it picks.
type service struct {
	item     *store.Item
	selector labels.Selector
	pods     map[string]bool // names, in the service's namespace
	slices   map[string]bool // names of the slices that we keep for it
}

func (s *service) spec() *corev1.Service { return s.item.Object.(*corev1.Service) }

// Controller is one goroutine's state; only Run touches it.
type Controller struct {
	store    *store.Store
	services map[string]map[string]*service // by namespace and name
	dirty    map[key]bool
}

// New returns a controller that does nothing until Run.
func New(s *store.Store) *Controller { return &Controller{store: s} }

// Run keeps slices until ctx ends. A restart finds the slices that it left and goes on with them.
func (c *Controller) Run(ctx context.Context) {
	for ctx.Err() == nil {
		c.session(ctx)
	}
}

// session follows the store until ctx ends or a cursor fell behind.
func (c *Controller) session(ctx context.Context) {
	c.services, c.dirty = map[string]map[string]*service{}, map[key]bool{}
	services, _, onService := c.store.ListAndWatch(store.Services, "")
	defer onService.Close()
	pods, _, onPod := c.store.ListAndWatch(store.Pods, "")
	defer onPod.Close()
	kept, _, onSlice := c.store.ListAndWatch(store.EndpointSlices, "")
	defer onSlice.Close()

	for _, item := range services {
		c.serviceChanged(item, pods)
	}
	c.adopt(kept)
	c.sync()
	var buf [64]store.Event
	for {
		var from *store.Cursor
		var take func(store.Event)
		select {
		case <-ctx.Done():
			return
		case <-onService.Ready():
			from, take = onService, c.onService
		case <-onPod.Ready():
			from, take = onPod, c.onPod
		case <-onSlice.Ready():
			from, take = onSlice, c.onSlice
		}
		events, _, err := from.Next(buf[:0])
		if err != nil {
			slog.Warn("endpoints fell behind, starting over", "err", err)
			return
		}
		for _, e := range events {
			take(e)
		}
		clear(events)
		c.sync()
	}
}

func (c *Controller) onService(e store.Event) {
	obj := e.Item.Object
	if e.Type == store.Deleted {
		c.forget(obj.GetNamespace(), obj.GetName())
		return
	}
	pods, _ := c.store.List(store.Pods, obj.GetNamespace())
	c.serviceChanged(e.Item, pods)
}

// serviceChanged takes a new or changed service in.
func (c *Controller) serviceChanged(item *store.Item, pods []*store.Item) {
	svc := item.Object.(*corev1.Service)
	known := c.services[svc.Namespace][svc.Name]
	if len(svc.Spec.Selector) == 0 || svc.Spec.Type == corev1.ServiceTypeExternalName {
		if known != nil {
			c.forget(svc.Namespace, svc.Name)
		}
		return
	}
	if known != nil && known.spec().UID != svc.UID {
		c.forget(svc.Namespace, svc.Name)
		known = nil
	}
	now := &service{item: item, selector: labels.SelectorFromSet(svc.Spec.Selector), pods: map[string]bool{}, slices: map[string]bool{}}
	if known != nil {
		now.slices = known.slices
	}
	for _, p := range pods {
		if p.Object.GetNamespace() == svc.Namespace && now.selector.Matches(labels.Set(p.Object.GetLabels())) {
			now.pods[p.Object.GetName()] = true
		}
	}
	if c.services[svc.Namespace] == nil {
		c.services[svc.Namespace] = map[string]*service{}
	}
	c.services[svc.Namespace][svc.Name] = now
	c.dirty[key{svc.Namespace, svc.Name}] = true
}

// forget drops a service and its slices.
func (c *Controller) forget(namespace, name string) {
	known := c.services[namespace][name]
	if known == nil {
		return
	}
	delete(c.services[namespace], name)
	delete(c.dirty, key{namespace, name})
	for slice := range known.slices {
		c.remove(namespace, slice)
	}
}

func (c *Controller) onPod(e store.Event) {
	pod := e.Item.Object
	gone := e.Type == store.Deleted
	for name, s := range c.services[pod.GetNamespace()] {
		was := s.pods[pod.GetName()]
		is := !gone && s.selector.Matches(labels.Set(pod.GetLabels()))
		switch {
		case is:
			s.pods[pod.GetName()] = true
		case was:
			delete(s.pods, pod.GetName())
		default:
			continue
		}
		c.dirty[key{pod.GetNamespace(), name}] = true
	}
}

// onSlice notices slices that somebody else deleted.
func (c *Controller) onSlice(e store.Event) {
	if e.Type != store.Deleted {
		return
	}
	slice := e.Item.Object
	s := c.services[slice.GetNamespace()][slice.GetLabels()[discoveryv1.LabelServiceName]]
	if s != nil && s.slices[slice.GetName()] {
		c.dirty[key{slice.GetNamespace(), s.spec().Name}] = true
	}
}

// adopt takes over the slices that an earlier run made and removes those whose service is gone.
func (c *Controller) adopt(items []*store.Item) {
	for _, item := range items {
		slice := item.Object.(*discoveryv1.EndpointSlice)
		if slice.Labels[discoveryv1.LabelManagedBy] != managedBy {
			continue
		}
		if s := c.services[slice.Namespace][slice.Labels[discoveryv1.LabelServiceName]]; s != nil {
			s.slices[slice.Name] = true
			continue
		}
		c.remove(slice.Namespace, slice.Name)
	}
}

// sync brings the slices of all services that changed up to date.
func (c *Controller) sync() {
	for k := range c.dirty {
		delete(c.dirty, k)
		if s := c.services[k.namespace][k.name]; s != nil {
			if err := c.write(s); err != nil {
				slog.Error("endpoints of a service are not up to date", "service", k.namespace+"/"+k.name, "err", err)
			}
		}
	}
}

// write stores the slices of one service. Existing slices are changed rather than replaced: readers then see one change
// instead of a gap.
func (c *Controller) write(s *service) error {
	svc := s.spec()
	pods := make([]*corev1.Pod, 0, len(s.pods))
	for name := range s.pods {
		if item := c.store.Get(store.Pods, svc.Namespace, name); item != nil {
			pods = append(pods, item.Object.(*corev1.Pod))
		}
	}
	slices.SortFunc(pods, func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	want := compute(svc, pods)
	free := slices.Sorted(maps.Keys(s.slices))
	used := make([]string, len(want))
	for i, w := range want { // slices that have the same ports already first
		for j, name := range free {
			item := c.store.Get(store.EndpointSlices, svc.Namespace, name)
			if item != nil && samePorts(item.Object.(*discoveryv1.EndpointSlice).Ports, w.ports) {
				used[i], free = name, slices.Delete(free, j, j+1)
				break
			}
		}
	}
	for i, w := range want {
		if used[i] == "" && len(free) > 0 {
			used[i], free = free[0], free[1:]
		}
		if err := c.put(s, used[i], w); err != nil {
			return err
		}
	}
	for _, name := range free {
		delete(s.slices, name)
		c.remove(svc.Namespace, name)
	}
	return nil
}

// tries bounds how often a slice is written again because somebody else wrote it at the same moment.
const tries = 5

// put writes one slice; an empty name makes a new one.
func (c *Controller) put(s *service, name string, w wanted) error {
	svc := s.spec()
	if name != "" {
		for range tries {
			old := c.store.Get(store.EndpointSlices, svc.Namespace, name)
			if old == nil {
				break
			}
			slice := old.Clone().(*discoveryv1.EndpointSlice)
			dress(slice, svc, w)
			if _, err := c.store.Put(store.EndpointSlices, slice, old); !fault.Is(err, fault.Busy) && !fault.Is(err, fault.NotFound) {
				return err
			}
		}
		delete(s.slices, name)
	}
	if ns := c.store.Get(store.Namespaces, "", svc.Namespace); ns != nil && ns.Object.GetDeletionTimestamp() != nil {
		return nil // the namespace is going, and the service with it
	}
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
		Namespace: svc.Namespace, GenerateName: svc.Name + "-", Name: svc.Name + "-" + utilrand.String(5),
		UID: uuid.NewUUID(), CreationTimestamp: metav1.NewTime(time.Now().Truncate(time.Second)), Generation: 1,
	}}
	dress(slice, svc, w)
	if _, err := c.store.Put(store.EndpointSlices, slice, nil); err != nil {
		return err
	}
	s.slices[slice.Name] = true
	return nil
}

func (c *Controller) remove(namespace, name string) {
	for range tries {
		old := c.store.Get(store.EndpointSlices, namespace, name)
		if old == nil {
			return
		}
		if _, err := c.store.Delete(store.EndpointSlices, old, nil); err == nil {
			return
		}
	}
	slog.Error("endpoint slice is not removed: it keeps changing", "slice", namespace+"/"+name)
}
