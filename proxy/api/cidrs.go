package api

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"worknode/kube"
)

// CIDRs is a made-up object: all ServiceCIDRs of the cluster together, as no rule cares which of them a range is from.
type CIDRs struct {
	metav1.TypeMeta
	List []netip.Prefix
}

// DeepCopyObject implements runtime.Object.
func (c *CIDRs) DeepCopyObject() runtime.Object { return &CIDRs{c.TypeMeta, slices.Clone(c.List)} }

// noCIDRs is how long we wait before we ask an API again that had no ServiceCIDRs for us.
const noCIDRs = 10 * time.Minute

// followCIDRs sends CIDRs whenever they change. An API without ServiceCIDRs (they came with Kubernetes 1.33, and a
// standalone node has none), or one that does not let us read them, is asked again now and then: traffic to unallocated
// addresses is then routed as any other.
// It sends Synced once, when it has told what there is or knows that it will not soon.
func (c Cluster) followCIDRs(ctx context.Context, in chan<- kube.Delta) {
	send := func(d kube.Delta) {
		select {
		case in <- d:
		case <-ctx.Done():
		}
	}
	told := false
	synced := func() {
		if !told {
			told = true
			send(kube.Delta{Op: kube.Synced})
		}
	}
	for ctx.Err() == nil {
		err := c.Client.List(ctx, kube.ServiceCIDRs, kube.Where{}, kube.ServiceCIDRs.NewList())
		if err == nil {
			break
		}
		wait := noCIDRs
		if !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
			wait = 5 * time.Second
		}
		synced()
		slog.Debug("no ServiceCIDRs to follow", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	all := map[types.UID][]netip.Prefix{}
	complete := false
	kube.Follow(ctx, c.Client, kube.ServiceCIDRs, kube.Where{}, func(d kube.Delta) {
		switch o, ok := d.Object.(*networkingv1.ServiceCIDR); {
		case d.Op == kube.Synced:
			complete = true
		case !ok:
			return
		case d.Op == kube.Delete:
			delete(all, o.UID)
		default:
			all[o.UID] = prefixes(o.Spec.CIDRs)
		}
		if !complete {
			return
		}
		now := &CIDRs{}
		for _, list := range all {
			now.List = append(now.List, list...)
		}
		slices.SortFunc(now.List, netip.Prefix.Compare)
		now.List = slices.Compact(now.List)
		send(kube.Delta{Op: kube.Put, Object: now})
		synced()
	})
}
