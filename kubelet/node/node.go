// Package node presents the machine to the cluster: the Node object with its status, and the Lease whose renewal says
// that the kubelet lives. It evicts nothing and admits nothing; Allocatable is what others decide with.
//
// Read first: node.go (the loops), status.go (what is said, pure), facts.go (what the machine is), lease.go.
package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"worknode/kube"
	"worknode/task"
)

// Config is what the node says about itself beyond what the machine tells.
type Config struct {
	Client      *kube.Client
	Name        string
	Hostname    string   // as the Hostname address and label; empty: Name
	IPs         []string // InternalIP addresses, the primary family first
	Labels      map[string]string
	MaxPods     int // zero: 110
	PodCIDR     string
	KubeletPort int32
	Version     string // kubeletVersion
	RootDir     string // its file system is the node's ephemeral storage
	// Reserved is kept for the system and the node's own processes: cpu, memory, ephemeral-storage.
	Reserved v1.ResourceList
	// Kept is what hard eviction keeps free, as a share of the capacity or an amount.
	Kept       map[v1.ResourceName]Threshold
	Taints     []v1.Taint // of a node that registers; an existing node keeps its own
	ProviderID string
	Unlisted   bool // do not make the Node object: an administrator does
	MaxImages  int  // named in the status, the largest; negative: all

	// The times of the heartbeat; zero means the default of KubeletConfiguration.
	LookEvery, ReportEvery time.Duration
	LeaseSeconds           int32

	// Runtime asks the container runtime how it is; see RuntimeOf.
	Runtime func(context.Context) (Runtime, error)
	// Images lists the images on the node; may be nil. See ImagesOf.
	Images func(context.Context) ([]v1.ContainerImage, error)
	// Event tells about the node; may be nil.
	Event func(kind, reason, message string)
	// Registered tells the UID of the Node object whenever it is there anew; may be nil. It must not block.
	Registered func(types.UID)
}

// Runtime is how the container runtime is. Problem is empty when it can run pods.
type Runtime struct {
	Name, Version      string
	Problem            string
	Handlers           []v1.NodeRuntimeHandler
	SupplementalGroups bool // supplementalGroupsPolicy works
}

// Threshold is an amount that must stay free.
type Threshold struct {
	Percent float64 // of the capacity, if Amount is nil
	Amount  *resource.Quantity
}

// The times of the heartbeat. Source: Kubernetes docs, nodes, heartbeats.
const (
	lookEvery   = 10 * time.Second // recompute the status
	reportEvery = 5 * time.Minute  // patch it though nothing changed
	imagesEvery = 30 * time.Second
	askWithin   = 5 * time.Second  // for the runtime's answer
	forgive     = 30 * time.Second // a runtime that was well may be silent this long, as when it is upgraded
	callWithin  = 10 * time.Second // for the API server's answer
)

// Node keeps one Node object current. Make it with New.
type Node struct {
	Config
	facts Facts
	kick  chan struct{}

	mu    sync.Mutex
	ready bool

	// The rest belongs to the status loop.
	started  time.Time
	said     v1.NodeStatus // as the API server has it
	reported time.Time
	uid      types.UID
	runtime  Runtime
	wellAt   time.Time // when the runtime last answered well
	images   []v1.ContainerImage
	imagesAt time.Time
	pressure pressure
}

// New reads the machine's facts and returns a Node that is not yet registered.
func New(c Config) *Node {
	if c.Hostname == "" {
		c.Hostname = c.Name
	}
	c.MaxPods = cmp.Or(c.MaxPods, 110)
	c.MaxImages = cmp.Or(c.MaxImages, imagesMost)
	c.LookEvery, c.ReportEvery = cmp.Or(c.LookEvery, lookEvery), cmp.Or(c.ReportEvery, reportEvery)
	c.LeaseSeconds = cmp.Or(c.LeaseSeconds, leaseSeconds)
	if c.Event == nil {
		c.Event = func(string, string, string) {}
	}
	if c.Registered == nil {
		c.Registered = func(types.UID) {}
	}
	return &Node{Config: c, facts: ReadFacts(c.RootDir), kick: make(chan struct{}, 1)}
}

// Facts is what the machine is; read once, at New.
func (n *Node) Facts() Facts { return n.facts }

// Allocatable is what pods may request together. The caller owns the result.
func (n *Node) Allocatable() v1.ResourceList { return allocatable(n.Config, n.facts) }

// Enforced is what pods may use together: the allocatable, and what eviction keeps free, so that eviction comes before the
// kernel. The caller owns the result. Source: Kubernetes docs, reserve compute resources, enforcing node allocatable.
func (n *Node) Enforced() v1.ResourceList {
	c := n.Config
	c.Kept = nil
	return allocatable(c, n.facts)
}

// Ready reports whether the runtime was well when last looked at, which is what the Ready condition says.
func (n *Node) Ready() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ready
}

// Kick makes the node look at itself now, as after the runtime came back. It does not block.
func (n *Node) Kick() {
	select {
	case n.kick <- struct{}{}:
	default:
	}
}

// Run registers the node and keeps its status and lease until ctx ends. It never gives up: errors are retried, and
// logged when they change.
func (n *Node) Run(ctx context.Context) {
	n.started = time.Now()
	n.Event(v1.EventTypeNormal, "Starting", "Starting kubelet.")
	n.look(ctx)
	if !n.register(ctx) {
		return
	}
	if n.runtime.Problem != "" {
		n.look(ctx) // an adopted Node may know that the runtime was well until now
	}
	tasks := task.New(ctx)
	defer tasks.Stop()
	tasks.Go("node lease", func(ctx context.Context) { n.renewLease(ctx, n.uid) })

	var lastErr string
	wait := shortly
	for {
		if err := n.report(ctx); err != nil && ctx.Err() == nil && err.Error() != lastErr {
			lastErr = err.Error()
			slog.Warn("node status was not accepted, retrying", "node", n.Name, "err", err)
		} else if err == nil {
			lastErr = ""
		}
		// Until the node is ready someone waits for it, so look again soon, then less and less often.
		next := n.LookEvery
		if !n.Ready() || lastErr != "" {
			next, wait = wait, min(2*wait, n.LookEvery)
		} else {
			wait = shortly
		}
		select {
		case <-ctx.Done():
			return
		case <-n.kick:
			n.imagesAt = time.Time{}
		case <-time.After(next):
		}
		n.look(ctx)
	}
}

const shortly = 100 * time.Millisecond

// look asks the runtime and reads what changes on the machine.
func (n *Node) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	now := time.Now()
	rt, err := n.Runtime(ctx)
	switch {
	case err == nil && rt.Problem == "":
		n.wellAt, n.runtime = now, rt
	case err == nil:
		n.runtime, n.wellAt = rt, time.Time{} // its own word needs no second opinion
	case n.forgiven(now):
		n.runtime.Problem = ""
	default:
		n.runtime.Problem = fmt.Sprintf("container runtime is down: %v", err)
	}
	if n.Images != nil && err == nil && now.Sub(n.imagesAt) >= imagesEvery {
		if images, err := n.Images(ctx); err == nil {
			n.images, n.imagesAt = images, now
		}
	}
	n.pressure.look(now, n.RootDir)
	n.mu.Lock()
	n.ready = n.runtime.Problem == ""
	n.mu.Unlock()
}

// forgiven reports whether a runtime's silence is still put up with. After a restart of the kubelet the last word is
// the API server's: a node that was ready stays so for a while, or every upgrade would flap.
func (n *Node) forgiven(now time.Time) bool {
	if n.wellAt.IsZero() {
		return isTrue(n.said.Conditions, v1.NodeReady) && now.Sub(n.started) < forgive
	}
	return now.Sub(n.wellAt) < forgive
}

// register creates the Node or adopts the one that is there. It returns false only when ctx ends.
func (n *Node) register(ctx context.Context) bool {
	const most = 7 * time.Second
	var lastErr string
	for wait := shortly; ; wait = min(2*wait, most) {
		err := n.tryRegister(ctx)
		if err == nil {
			return true
		}
		if err.Error() != lastErr && ctx.Err() == nil {
			lastErr = err.Error()
			slog.Warn("node is not registered yet, retrying", "node", n.Name, "err", err)
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(wait):
		}
		n.look(ctx)
	}
}

func (n *Node) tryRegister(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	obj, got := n.object(time.Now()), &v1.Node{}
	if n.Unlisted {
		if err := n.Client.Get(ctx, kube.Nodes, "", n.Name, got); err != nil {
			return fmt.Errorf("get node %s, which others make (registerNode: false): %w", n.Name, err)
		}
		n.uid, n.said = got.UID, got.Status
		return nil
	}
	err := n.Client.Create(ctx, kube.Nodes, "", obj, got)
	switch {
	case err == nil:
		slog.Info("node registered", "node", n.Name)
		n.uid = got.UID
		n.Registered(n.uid)
		if len(got.Status.Conditions) > 0 { // servers may or may not take the status of a new object
			n.noteSaid(obj.Status)
		}
		return nil
	case !apierrors.IsAlreadyExists(err):
		return fmt.Errorf("create node %s: %w", n.Name, err)
	}
	if err := n.Client.Get(ctx, kube.Nodes, "", n.Name, got); err != nil {
		return fmt.Errorf("get node %s: %w", n.Name, err)
	}
	n.uid, n.said = got.UID, got.Status
	n.Registered(n.uid)
	if was, is := got.Status.NodeInfo.BootID, n.facts.BootID; was != "" && was != is {
		n.Event(v1.EventTypeWarning, "Rebooted", fmt.Sprintf("Node %s has been rebooted, boot id: %s", n.Name, is))
		n.said = v1.NodeStatus{Conditions: notReady(got.Status.Conditions)}
	}
	return n.adoptMeta(ctx, got, obj)
}

// adoptMeta brings the labels that the kubelet owns up to date, and leaves everyone else's alone.
func (n *Node) adoptMeta(ctx context.Context, got, want *v1.Node) error {
	same := true
	for k, v := range want.Labels {
		same = same && got.Labels[k] == v
	}
	change := map[string]any{"metadata": map[string]any{"labels": want.Labels}}
	if want.Spec.PodCIDR != "" && got.Spec.PodCIDR == "" {
		same, change["spec"] = false, map[string]any{"podCIDR": want.Spec.PodCIDR, "podCIDRs": want.Spec.PodCIDRs}
	}
	if same {
		return nil
	}
	patch, err := json.Marshal(change)
	if err != nil {
		return err
	}
	if err := n.Client.Patch(ctx, kube.Nodes, "", n.Name, types.MergePatchType, patch, nil); err != nil {
		return fmt.Errorf("patch labels of node %s: %w", n.Name, err)
	}
	return nil
}

// report brings the status to the API server if it changed or the last report is old.
func (n *Node) report(ctx context.Context) error {
	now := time.Now()
	want := n.status(now)
	if sameStatus(want, n.said) && now.Sub(n.reported) < n.ReportEvery {
		return nil
	}
	patch, err := statusPatch(want, n.said)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	err = n.Client.Patch(ctx, kube.Nodes, "", n.Name, types.StrategicMergePatchType, patch, nil, "status")
	if apierrors.IsNotFound(err) { // deleted under us: come back as new
		n.said = v1.NodeStatus{}
		return errors.Join(err, n.tryRegister(ctx))
	}
	if err != nil {
		return fmt.Errorf("patch status of node %s: %w", n.Name, err)
	}
	n.noteSaid(want)
	return nil
}

// noteSaid remembers what the API server has and tells of changed conditions.
func (n *Node) noteSaid(now v1.NodeStatus) {
	for _, c := range now.Conditions {
		was := find(n.said.Conditions, c.Type)
		if was != nil && was.Status == c.Status {
			continue
		}
		reason := eventReason(c)
		slog.Info("node condition", "node", n.Name, "type", c.Type, "status", c.Status, "message", c.Message)
		n.Event(v1.EventTypeNormal, reason, fmt.Sprintf("Node %s status is now: %s", n.Name, reason))
	}
	n.said, n.reported = now, time.Now()
}

// object is the Node as it is created.
func (n *Node) object(now time.Time) *v1.Node {
	labels := map[string]string{
		v1.LabelHostname: n.Hostname, v1.LabelOSStable: "linux", v1.LabelArchStable: n.facts.Arch,
		"beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": n.facts.Arch,
	}
	maps.Copy(labels, n.Labels)
	node := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: labels}, Status: n.status(now)}
	node.Spec.Taints, node.Spec.ProviderID = n.Taints, n.ProviderID
	if n.PodCIDR != "" {
		node.Spec.PodCIDR, node.Spec.PodCIDRs = n.PodCIDR, []string{n.PodCIDR}
	}
	return node
}
