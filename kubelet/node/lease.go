package node

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	coordination "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"worknode/kube"
)

// The lease's times. Source: KubeletConfiguration, nodeLeaseDurationSeconds; renewal at a quarter of it.
const (
	leaseSeconds = 40
	leaseSpace   = "kube-node-lease"
)

func (n *Node) renewEvery() time.Duration { return time.Duration(n.LeaseSeconds) * time.Second / 4 }

// renewLease says every ten seconds, or as configured, that the kubelet lives, whatever the runtime does. uid is the Node's, which owns
// the lease, so that it goes with the Node.
func (n *Node) renewLease(ctx context.Context, uid types.UID) {
	var lease *coordination.Lease // as the API server has it; nil: to be read or made first
	retry := shortly
	for {
		got, err := n.renewOnce(ctx, lease, uid)
		wait := n.renewEvery()
		if err == nil {
			retry = shortly
		} else {
			if retry == shortly && ctx.Err() == nil {
				slog.Warn("node lease was not renewed, retrying", "node", n.Name, "err", err)
			}
			wait, retry = retry, min(2*retry, n.renewEvery()/2)
		}
		lease = got
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// renewOnce writes the lease and returns it as the server has it, nil if that is not known.
func (n *Node) renewOnce(ctx context.Context, lease *coordination.Lease, uid types.UID) (*coordination.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, n.renewEvery())
	defer cancel()
	if lease == nil {
		lease = &coordination.Lease{}
		err := n.Client.Get(ctx, kube.Leases, leaseSpace, n.Name, lease)
		if apierrors.IsNotFound(err) {
			return n.createLease(ctx, uid)
		}
		if err != nil {
			return nil, fmt.Errorf("get lease %s: %w", n.Name, err)
		}
	}
	n.fillLease(lease, uid)
	got := &coordination.Lease{}
	if err := n.Client.Update(ctx, kube.Leases, leaseSpace, n.Name, lease, got); err != nil {
		return nil, fmt.Errorf("update lease %s: %w", n.Name, err)
	}
	return got, nil
}

func (n *Node) fillLease(lease *coordination.Lease, uid types.UID) {
	now := metav1.NowMicro()
	lease.Namespace, lease.Name = leaseSpace, n.Name
	lease.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: uid}}
	lease.Spec.HolderIdentity, lease.Spec.RenewTime = &n.Name, &now
	lease.Spec.LeaseDurationSeconds = &n.LeaseSeconds
}

func (n *Node) createLease(ctx context.Context, uid types.UID) (*coordination.Lease, error) {
	lease, got := &coordination.Lease{}, &coordination.Lease{}
	n.fillLease(lease, uid)
	if err := n.Client.Create(ctx, kube.Leases, leaseSpace, lease, got); err != nil {
		return nil, fmt.Errorf("create lease %s/%s: %w", leaseSpace, n.Name, err)
	}
	return got, nil
}
