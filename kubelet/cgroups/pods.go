// Package cgroups keeps the part of the cgroup tree above the containers: one group for all pods, two for the QoS
// classes that may be squeezed, and one for each pod.
//
//	<root>/pod<uid>                  Guaranteed
//	<root>/burstable/pod<uid>
//	<root>/besteffort/pod<uid>
//
// The runtime makes the containers' groups below. The tree itself is the state: a restarted kubelet finds it by looking.
// It works on cgroup v1 and v2 through worknode/kernel/cgroup; values are computed by translate.
package cgroups

import (
	"log/slog"
	"path"
	"slices"
	"strings"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"worknode/fault"
	"worknode/kernel/cgroup"
	"worknode/kubelet/translate"
)

// Facts are the node's bounds for its pods.
type Facts struct {
	Allocatable      v1.ResourceList // what all pods together may use (cpu, memory); what is missing is not bounded
	PodPidsLimit     int64           // processes a pod; not positive: no bound
	CPUQuotaPeriodUs int64           // CFS period; zero: 100 ms
	NoCPUQuota       bool            // CPU limits are not enforced
}

// Pods is the tree below one root. It is safe for concurrent use.
type Pods struct {
	tree  *cgroup.Tree
	root  string
	facts Facts

	mu        sync.Mutex          // guards what follows and the write of the tier's shares
	requests  map[types.UID]int64 // CPU requests of Burstable pods, thousandths
	burstable int64               // shares the burstable group has; zero: not known
	unseen    map[types.UID]bool  // Burstable pods found at Open that nobody has spoken of yet
}

// Open makes the groups above the pods. root is a path in the cgroup tree, "/kubepods" on a node of its own.
// Errors: Denied without the right to make cgroups; Unsupported if a needed controller is missing.
// Repeat: safe; existing pods keep theirs.
func Open(root string, facts Facts) (*Pods, error) {
	tree, err := cgroup.Open()
	if err != nil {
		return nil, err
	}
	p := &Pods{tree: tree, root: path.Clean("/" + root), facts: facts, requests: map[types.UID]int64{}}
	var all cgroup.Resources
	if cpu, ok := facts.Allocatable[v1.ResourceCPU]; ok {
		all.CPUShares = uint64(translate.Shares(cpu.MilliValue()))
	}
	if memory, ok := facts.Allocatable[v1.ResourceMemory]; ok && memory.Value() > 0 {
		n := memory.Value()
		all.Memory = &n
	}
	err = tree.Make(p.root, all)
	if fault.Is(err, fault.Busy) && all.Memory != nil {
		// cgroup v1 refuses a bound below what is in use. The pods were there before the bound: they stay.
		slog.Warn("pods use more memory than the node's allocatable", "cgroup", p.root, "bytes", *all.Memory, "err", err)
		all.Memory = nil
		err = tree.Make(p.root, all)
	}
	if err != nil {
		return nil, err
	}
	return p, p.tiers()
}

// tiers makes the groups of the QoS classes. After a restart the burstable one keeps its weight until all of its pods
// are known again: it must not starve meanwhile.
func (p *Pods) tiers() error {
	least := cgroup.Resources{CPUShares: uint64(translate.Shares(0))}
	if err := p.tree.Make(path.Join(p.root, "besteffort"), least); err != nil {
		return err
	}
	found, err := p.in("burstable")
	if err != nil {
		return err
	}
	p.unseen = make(map[types.UID]bool, len(found))
	for _, uid := range found {
		p.unseen[uid] = true
	}
	if len(found) > 0 {
		least = cgroup.Resources{}
	} else {
		p.burstable = translate.Shares(0)
	}
	return p.tree.Make(path.Join(p.root, "burstable"), least)
}

// V2 tells whether the node has cgroup v2 alone.
func (p *Pods) V2() bool { return p.tree.V2() }

// Parent is the path of a pod's group: the cgroup parent of its sandbox.
func (p *Pods) Parent(pod *v1.Pod) string { return p.parent(translate.QoS(pod), pod.UID) }

func (p *Pods) parent(class v1.PodQOSClass, uid types.UID) string {
	return path.Join(p.root, tier(class), "pod"+string(uid))
}

func tier(class v1.PodQOSClass) string {
	switch class {
	case v1.PodQOSBurstable:
		return "burstable"
	case v1.PodQOSBestEffort:
		return "besteffort"
	}
	return ""
}

// Ensure makes the pod's group with its bounds, and gives its QoS class the weight of its pods. It is called for every
// pod, also for one found running after a restart: the classes' weights come from these calls.
// Repeat: safe. Crash: Remove.
func (p *Pods) Ensure(pod *v1.Pod) (parent string, err error) {
	if uid := string(pod.UID); uid == "" || strings.ContainsAny(uid, "/\x00") {
		return "", fault.New(fault.Invalid, "pod uid %q cannot be the name of a cgroup", uid)
	}
	class := translate.QoS(pod)
	parent = p.parent(class, pod.UID)
	bounds := translate.ForPod(pod, translate.Node{CPUQuotaPeriodUs: p.facts.CPUQuotaPeriodUs, NoCPUQuota: p.facts.NoCPUQuota})
	if err := p.tree.Make(parent, p.resources(bounds)); err != nil {
		return "", err
	}
	if class == v1.PodQOSBurstable {
		err = p.weigh(pod.UID, bounds.MilliCPU)
	}
	return parent, err
}

func (p *Pods) resources(bounds translate.PodResources) cgroup.Resources {
	out := cgroup.Resources{CPUShares: uint64(bounds.Shares)}
	if bounds.QuotaUs > 0 {
		out.CPUQuota, out.CPUPeriod = bounds.QuotaUs, uint64(bounds.Period)
	}
	if bounds.Memory > 0 {
		out.Memory = &bounds.Memory
	}
	if n := p.facts.PodPidsLimit; n > 0 {
		out.Pids = &n
	}
	return out
}

// weigh notes what a Burstable pod asks for, -1 when it is gone, and writes the class's shares if their sum changed.
func (p *Pods) weigh(uid types.UID, milli int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.unseen, uid)
	if milli < 0 {
		delete(p.requests, uid)
	} else {
		p.requests[uid] = milli
	}
	if len(p.unseen) > 0 {
		return nil
	}
	var sum int64
	for _, m := range p.requests {
		sum += m
	}
	shares := translate.Shares(sum)
	if shares == p.burstable {
		return nil
	}
	if err := p.tree.Set(path.Join(p.root, "burstable"), cgroup.Resources{CPUShares: uint64(shares)}); err != nil {
		return err
	}
	p.burstable = shares
	return nil
}

// Remove ends what is left in a pod's group and deletes it. The pod need not be known.
// Errors: Busy if processes do not go away. Repeat: safe; no such pod is success.
func (p *Pods) Remove(uid types.UID) error {
	for _, class := range []v1.PodQOSClass{v1.PodQOSGuaranteed, v1.PodQOSBurstable, v1.PodQOSBestEffort} {
		group := p.parent(class, uid)
		err := p.tree.Kill(group)
		if err == nil || fault.Is(err, fault.NotFound) {
			err = p.tree.Remove(group)
		}
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	return p.weigh(uid, -1)
}

// List returns the pods that have a group.
func (p *Pods) List() ([]types.UID, error) {
	var out []types.UID
	for _, tier := range []string{"", "burstable", "besteffort"} {
		found, err := p.in(tier)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	slices.Sort(out)
	return out, nil
}

// in returns the pods of one QoS class.
func (p *Pods) in(tier string) ([]types.UID, error) {
	parent := path.Join(p.root, tier)
	groups, err := p.tree.Under(parent)
	if err != nil {
		return nil, err
	}
	var out []types.UID
	for _, g := range groups {
		if uid, ok := strings.CutPrefix(path.Base(g), "pod"); ok && path.Dir(g) == parent {
			out = append(out, types.UID(uid))
		}
	}
	return out, nil
}
