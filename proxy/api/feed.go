package api

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"worknode/kube"
	"worknode/proxy/state"
	"worknode/task"
)

// Event is one change, in the proxy's words. Exactly one of the pointers is set (Trouble may stand beside one), or Synced.
type Event struct {
	PutService    *state.Service
	DeleteService *state.Name
	PutSlice      *state.Slice
	DeleteSlice   *state.Name
	Node          *state.Node
	CIDRs         *[]netip.Prefix // of all ServiceCIDR objects together
	Synced        bool            // one of the followed kinds is complete; see Feed
	Seen          time.Time
	Trigger       time.Time      // when the endpoints changed in the cluster, if the slice says so
	Trouble       *state.Trouble // what the object says that cannot be served; without a reason: nothing any more
}

// Feed delivers the objects of one API, each call in order. It sends kube.Synced once when all that existed at the
// start has been delivered, and ends with ctx. It is an interface so that the proxy can be driven without an API.
type Feed interface {
	Follow(ctx context.Context, send func(kube.Delta))
}

// Cluster is the feed of a real API server (or the local API): Services, EndpointSlices and this Node.
type Cluster struct {
	Client *kube.Client
	Node   string
}

// Follow implements Feed: Synced is sent when all kinds are complete. A Node that does not exist is complete too: a
// standalone node may come up after its proxy, and ClusterIPs need it not.
func (c Cluster) Follow(ctx context.Context, send func(kube.Delta)) {
	in := make(chan kube.Delta, 256)
	tasks := task.New(ctx)
	follow := func(name string, r kube.Resource, where kube.Where) {
		tasks.Go(name, func(ctx context.Context) {
			kube.Follow(ctx, c.Client, r, where, func(d kube.Delta) {
				select {
				case in <- d:
				case <-ctx.Done():
				}
			})
		})
	}
	follow("follow services", kube.Services, kube.Where{Label: "!" + labelProxyName})
	follow("follow endpointslices", kube.EndpointSlices, kube.Where{Label: "!" + corev1.IsHeadlessService})
	tasks.Go("follow servicecidrs", func(ctx context.Context) { c.followCIDRs(ctx, in) })
	missing := 3
	if c.Node != "" {
		follow("follow node", kube.Nodes, kube.Where{Field: "metadata.name=" + c.Node})
		missing++
	}
	defer tasks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case d := <-in:
			if d.Op != kube.Synced {
				send(d)
			} else if missing--; missing == 0 {
				send(d)
			}
		}
	}
}

// Translate turns a delta into an event; ok is false if it is none of our kinds. node is this node's name.
func Translate(d kube.Delta, node string, now time.Time) (e Event, ok bool) {
	e.Seen = now
	if d.Op == kube.Synced {
		e.Synced = true
		return e, true
	}
	switch o := d.Object.(type) {
	case *corev1.Service:
		if s, trouble := Service(o); s != nil && d.Op == kube.Put {
			e.PutService, e.Trouble = s, trouble
		} else {
			e.DeleteService = &state.Name{Namespace: o.Namespace, Name: o.Name}
		}
	case *discoveryv1.EndpointSlice:
		if s, trouble := Slice(o, node); s != nil && d.Op == kube.Put {
			e.PutSlice, e.Trouble = s, trouble
			// Set by the slice controller, in RFC 3339; a malformed one only costs the metric.
			if t, err := time.Parse(time.RFC3339Nano, o.Annotations[corev1.EndpointsLastChangeTriggerTime]); err == nil {
				e.Trigger = t
			}
		} else {
			e.DeleteSlice = &state.Name{Namespace: o.Namespace, Name: o.Name}
			e.Trouble = &state.Trouble{Kind: "EndpointSlice", Object: *e.DeleteSlice}
		}
	case *corev1.Node:
		e.Node = &state.Node{}
		if d.Op == kube.Put {
			e.Node = Node(o)
		}
	case *CIDRs:
		e.CIDRs = &o.List
	default:
		slog.Warn("proxy: ignored an object of an unexpected kind", "kind", d.Object)
		return e, false
	}
	return e, true
}
