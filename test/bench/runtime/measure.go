package main

import (
	"context"
	"path/filepath"
	"slices"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// settle is how long late work of the calls before may go on and still be counted as theirs.
const settle = 500 * time.Millisecond

// cost is one series of equal calls.
type cost struct {
	p50     time.Duration
	runtime time.Duration // CPU a call of the runtime's processes, whatever they start included
	pods    time.Duration // CPU a call in the pods' cgroups: what sets the container up from inside, and the workload
}

// cpu is both together: who moves work from one cgroup to another gains nothing.
func (c cost) cpu() time.Duration { return c.runtime + c.pods }

// result is all that is known of one contestant.
type result struct {
	host, bridge, exec, remove cost
	empty, full                int64 // PSS in bytes with no pods and with many
	processes                  int   // with many
	pull                       pulled
	stall                      stall
	syncs                      int // calls that wait for a disk, a pod
}

// measure brings one contestant up, drives it and ends it.
func measure(ctx context.Context, c contestant, dir, images string, big *library, n sizes) (r result, err error) {
	node, err := start(ctx, c, dir, images, big)
	if err != nil {
		return r, err
	}
	defer node.end()
	for range 3 { // caches of seccomp programs, snapshots and the like are filled by the first pods
		if err := node.warm(ctx); err != nil {
			return r, err
		}
	}
	if err := wait(ctx, 4*settle); err != nil {
		return r, err
	}
	r.empty, _ = pss(node.group)
	if r.host, r.remove, err = node.starts(ctx, n.pods, cri.NamespaceMode_NODE); err != nil {
		return r, err
	}
	if r.bridge, _, err = node.starts(ctx, n.pods, cri.NamespaceMode_POD); err != nil {
		return r, err
	}
	if r.exec, err = node.execs(ctx, n.execs); err != nil {
		return r, err
	}
	if big != nil {
		if r.pull, err = node.pull(ctx, big); err != nil {
			return r, err
		}
	}
	count, err := syncs(ctx, node.group, filepath.Join(dir, "strace"), func() error {
		for range n.traced {
			if _, _, err := node.startPod(ctx, cri.NamespaceMode_POD); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return r, err
	}
	r.syncs = (count + n.traced - 1) / n.traced
	if err := node.removeAll(ctx); err != nil {
		return r, err
	}
	if r.stall, err = node.stalls(ctx); err != nil {
		return r, err
	}
	if err := node.startMany(ctx, n.many); err != nil {
		return r, err
	}
	if err := wait(ctx, 4*settle); err != nil {
		return r, err
	}
	r.full, r.processes = pss(node.group)
	return r, nil
}

func (n *node) warm(ctx context.Context) error {
	for _, network := range []cri.NamespaceMode{cri.NamespaceMode_NODE, cri.NamespaceMode_POD} {
		p, _, err := n.startPod(ctx, network)
		if err != nil {
			return err
		}
		if _, err := n.execTrue(ctx, p.container); err != nil {
			return err
		}
	}
	return n.removeAll(ctx)
}

// starts starts pods one after the other, then removes them likewise.
func (n *node) starts(ctx context.Context, count int, network cri.NamespaceMode) (up, down cost, err error) {
	var pods []pod
	up, err = n.series(ctx, count, func() (time.Duration, error) {
		p, took, err := n.startPod(ctx, network)
		pods = append(pods, p)
		return took, err
	})
	if err != nil {
		return up, down, err
	}
	down, err = n.series(ctx, count, func() (time.Duration, error) {
		begin := time.Now()
		p := pods[0]
		pods = pods[1:]
		err := n.removePod(ctx, p.sandbox)
		return time.Since(begin), err
	})
	return up, down, err
}

func (n *node) execs(ctx context.Context, count int) (cost, error) {
	p, _, err := n.startPod(ctx, cri.NamespaceMode_NODE)
	if err != nil {
		return cost{}, err
	}
	out, err := n.series(ctx, count, func() (time.Duration, error) { return n.execTrue(ctx, p.container) })
	if err != nil {
		return out, err
	}
	return out, n.removePod(ctx, p.sandbox)
}

// series makes equal calls in a row. CPU is read after a moment for what the last one left to do.
func (n *node) series(ctx context.Context, count int, call func() (time.Duration, error)) (cost, error) {
	var times []time.Duration
	runtime, pods := cpu(n.group), cpu(n.pods)
	for range count {
		took, err := call()
		if err != nil {
			return cost{}, err
		}
		times = append(times, took)
	}
	if err := wait(ctx, settle); err != nil {
		return cost{}, err
	}
	slices.Sort(times)
	return cost{times[len(times)/2], (cpu(n.group) - runtime) / time.Duration(count), (cpu(n.pods) - pods) / time.Duration(count)}, nil
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
