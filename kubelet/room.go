package kubelet

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"worknode/fault"
	"worknode/kubelet/act"
	"worknode/kubelet/logs"
	"worknode/kubelet/object"
	"worknode/kubelet/plan"
	"worknode/kubelet/probe"
	"worknode/kubelet/source"
	"worknode/kubelet/state"
	"worknode/kubelet/status"
	"worknode/kubelet/translate"
	"worknode/task"
)

// room holds the pods' actors and the doors they share. It routes news to the pod it is about and admits new pods.
type room struct {
	node    string
	runtime string // the runtime's name, for container ids in the status
	ips     func() []string
	space   func() plan.Load // what the node has for pods

	act     *act.Act
	writer  *status.Writer
	prober  *probe.Prober
	objects *object.Cache
	say     func(pod *v1.Pod, s plan.Say)
	left    func(pod *v1.Pod) // is told when nothing of a pod is left on the node
	tasks   *task.Group
	missed  atomic.Int64 // what the audit found and events did not tell

	mu     sync.Mutex
	pods   map[types.UID]*actor
	found  map[types.UID]*act.Pod // what the runtime held at start, until a pod claims it
	had    map[types.UID]bool     // pods of which the node has a directory, a cgroup or marks
	early  map[types.UID]bool     // pods with events before they were claimed; "" for events of unknown pods
	synced bool
}

// Put takes a new or changed pod. It is called in order from the source.
func (r *room) Put(pod *v1.Pod) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.pods[pod.UID]; a != nil {
		a.send(func(l *letters) { l.pod = pod })
		return
	}
	found, had := r.found[pod.UID], r.had[pod.UID]
	delete(r.found, pod.UID)
	delete(r.had, pod.UID)
	a := r.open(state.Want{Pod: pod, Runtime: r.runtime}, found, had)
	if found == nil && !had && pod.DeletionTimestamp == nil && !terminal(pod.Status.Phase) && pod.Status.StartTime == nil {
		a.want.Reject = plan.Admit(pod, r.node, r.used(), r.space())
	}
	if c := a.want.Reject; c.Reason != "" {
		a.log.Warn("pod rejected", "reason", c.Reason, "err", c.Message)
		r.say(pod, plan.Say{Warning: true, Reason: c.Reason, Message: c.Message})
	}
	r.objects.Use(pod)
	r.start(a)
}

// open makes an actor and fills what it has from what was found on the node. The caller holds mu.
func (r *room) open(want state.Want, found *act.Pod, had bool) *actor {
	pod := want.Pod
	a := &actor{uid: pod.UID, room: r, want: want, wake: make(chan struct{}, 1)}
	a.log = slog.With("pod", pod.Namespace+"/"+pod.Name, "uid", string(pod.UID))
	a.have.Status = pod.Status
	switch {
	case want.Orphan:
	case source.Static(pod):
		r.writer.Static(pod)
	default:
		known := pod.Status
		r.writer.Known(pod, &known)
	}
	pod.Status = v1.PodStatus{}
	if found == nil {
		found = &act.Pod{}
	}
	plan.Adopt(&a.have, found.World, had)
	if r.early[pod.UID] || r.early[""] {
		a.have.Lost = true
	}
	if had {
		a.have.End = r.act.KeptEnd(pod.UID)
	}
	s := &a.have.Status
	if !want.Orphan {
		if s.QOSClass == "" {
			s.QOSClass = translate.QoS(pod)
		}
		if ips := r.ips(); len(ips) > 0 && (s.HostIP == "" || !slices.Contains(ips, s.HostIP)) {
			s.HostIP, s.HostIPs = ips[0], nil
			for _, ip := range ips {
				s.HostIPs = append(s.HostIPs, v1.HostIP{IP: ip})
			}
		}
		if a.have.Alive() {
			// Its group exists; this makes the QoS classes' weights count it.
			if _, err := r.act.Cgroups.Ensure(pod); err != nil {
				a.log.Warn("cgroup of an adopted pod", "err", err)
			}
		}
	}
	return a
}

// start gives an actor its goroutine. The caller holds mu.
func (r *room) start(a *actor) {
	r.pods[a.uid] = a
	a.show()
	r.tasks.Go("pod "+a.want.Pod.Namespace+"/"+a.want.Pod.Name, a.run)
}

// used sums what the admitted pods ask for. The caller holds mu.
func (r *room) used() plan.Load {
	var sum plan.Load
	for _, a := range r.pods {
		if v := a.view.Load(); !v.Ended {
			sum = sum.Add(plan.Request(v.Pod))
		}
	}
	return sum
}

// Gone takes the news that a pod's object was removed.
func (r *room) Gone(pod *v1.Pod) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.pods[pod.UID]; a != nil {
		last := pod
		if last.Spec.NodeName == "" && len(last.Spec.Containers) == 0 {
			last = nil // only its name is known
		}
		a.send(func(l *letters) {
			l.gone = true
			if last != nil {
				l.pod = last
			}
		})
	}
}

// Synced says that all pods of the API server are known: what else is on the node belongs to nobody and is removed.
func (r *room) Synced() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.synced = true
	for uid, p := range r.found {
		r.orphan(uid, p, r.had[uid])
		delete(r.had, uid)
	}
	for uid := range r.had {
		r.orphan(uid, nil, true)
	}
	r.found, r.had, r.early = nil, nil, nil
	r.tasks.Go("stray logs", func(context.Context) {
		if err := r.act.SweepLogs(r.knows); err != nil {
			slog.Warn("logs of pods that are gone stay", "err", err)
		}
	})
}

// displace ends what an earlier life of the kubelet left running of a pod of this name but another UID: a static pod whose
// file changed meanwhile. It cannot wait until the API server is asked, for it may be the API server.
func (r *room) displace(key types.NamespacedName, uid types.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for old, p := range r.found {
		if old != uid && p.Namespace == key.Namespace && p.Name == key.Name {
			r.orphan(old, p, r.had[old])
			delete(r.found, old)
			delete(r.had, old)
		}
	}
}

// holds says whether something of a pod of this name is on the node.
func (r *room) holds(key types.NamespacedName) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.pods {
		if p := a.view.Load().Pod; p.Namespace == key.Namespace && p.Name == key.Name {
			return true
		}
	}
	return false
}

// knows says whether a pod has an actor.
func (r *room) knows(uid types.UID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pods[uid] != nil
}

// orphan ends a pod that the API server does not know. The caller holds mu.
func (r *room) orphan(uid types.UID, found *act.Pod, had bool) {
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: uid}}
	if found != nil {
		pod.Namespace, pod.Name = found.Namespace, found.Name
	}
	a := r.open(state.Want{Pod: pod, Orphan: true, Runtime: r.runtime}, found, had)
	a.log.Warn("nobody asks for this pod any more: removing it", "containers", len(a.have.Containers))
	r.start(a)
}

// forget drops an actor that has nothing left to do.
func (r *room) forget(a *actor) {
	r.mu.Lock()
	delete(r.pods, a.uid)
	r.mu.Unlock()
	r.writer.Drop(a.uid)
	r.objects.Drop(a.uid)
	a.log.Info("pod is gone")
	r.left(a.want.Pod)
}

// to sends a letter to a pod, to all if uid is empty.
func (r *room) to(uid types.UID, write func(*letters)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if uid != "" {
		if a := r.pods[uid]; a != nil {
			a.send(write)
		}
		return
	}
	for _, a := range r.pods {
		a.send(write)
	}
}

// happened routes an event of the runtime.
func (r *room) happened(e act.Event) {
	r.mu.Lock()
	if !r.synced && r.pods[e.UID] == nil {
		if r.early == nil {
			r.early = map[types.UID]bool{}
		}
		r.early[e.UID] = true
	}
	r.mu.Unlock()
	r.to(e.UID, func(l *letters) {
		if l.events == nil {
			l.events = map[string]state.Event{}
		}
		if old, ok := l.events[e.ID]; !ok || e.What > old {
			l.events[e.ID] = e.What
		}
	})
}

// gap says that events may have been missed.
func (r *room) gap() { r.to("", func(l *letters) { l.lost = true }) }

// objectChanged routes a changed ConfigMap or Secret to the pods that use it.
func (r *room) objectChanged(ns, kind, name string) {
	for _, uid := range r.objects.Users(ns, kind, name) {
		r.to(uid, func(l *letters) { l.changed = true })
	}
}

func (r *room) written(w status.Written) { r.to(w.UID, func(l *letters) { l.written = &w }) }

var kinds = map[probe.Kind]plan.Kind{probe.Startup: plan.Startup, probe.Readiness: plan.Readiness, probe.Liveness: plan.Liveness}

// judged routes a probe's verdict.
func (r *room) judged(res probe.Result) {
	r.to(res.UID, func(l *letters) {
		if l.verdicts == nil {
			l.verdicts = map[verdictKey]verdict{}
		}
		l.verdicts[verdictKey{res.Container, kinds[res.Kind]}] = verdict{res.ContainerID, state.Verdict(res.Verdict)}
	})
}

// unwell turns a probe's failure into the event that users know.
func (r *room) unwell(k probe.Key, reason, message string) {
	r.mu.Lock()
	a := r.pods[k.UID]
	r.mu.Unlock()
	if a != nil {
		r.say(a.view.Load().Pod, plan.Say{Container: k.Container, Warning: true, Reason: reason, Message: message})
	}
}

// quick does the actions that cannot block.
func (r *room) quick(a *actor, action plan.Action) {
	pod := a.want.Pod
	key := func(container string, kind plan.Kind) probe.Key {
		for p, k := range kinds {
			if k == kind {
				return probe.Key{UID: a.uid, Container: container, Kind: p}
			}
		}
		panic("no such probe: " + string(kind))
	}
	switch t := action.(type) {
	case plan.DropProbes:
		r.prober.Drop(a.uid)
	case plan.DropProbe:
		r.prober.DropKey(key(t.Container, t.Kind))
	case plan.SetProbe:
		spec, _ := plan.Lookup(pod, t.Container)
		if spec == nil {
			return
		}
		target := probe.Target{
			Key: key(t.Container, t.Kind), ContainerID: t.ID, Pod: pod, Container: spec,
			StartedAt: t.StartedAt, Initial: probe.Verdict(t.Initial), PodIP: a.have.Status.PodIP,
			Probe: map[plan.Kind]*v1.Probe{plan.Startup: spec.StartupProbe, plan.Readiness: spec.ReadinessProbe, plan.Liveness: spec.LivenessProbe}[t.Kind],
		}
		if len(a.have.Sandbox.IPs) > 0 {
			target.PodIP = a.have.Sandbox.IPs[0]
		} else if pod.Spec.HostNetwork {
			target.PodIP = a.have.Status.HostIP
		}
		r.prober.Set(target)
	}
}

const auditEvery = time.Minute

// audit compares the actors' states with the runtime's, slowly: a safety net under the events.
func (r *room) audit(ctx context.Context) {
	tick := time.NewTicker(auditEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		census, err := r.act.Census(ctx)
		if err != nil {
			slog.Warn("audit of running containers", "err", err)
			continue
		}
		r.mu.Lock()
		for uid, a := range r.pods {
			n := census[uid]
			a.send(func(l *letters) { l.census = &n })
		}
		r.mu.Unlock()
	}
}

// List returns all pods with their newest status. The objects are shared and read-only.
func (r *room) List() []*v1.Pod {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*v1.Pod, 0, len(r.pods))
	for _, a := range r.pods {
		if !a.want.Orphan {
			out = append(out, a.view.Load().Pod)
		}
	}
	return out
}

// Get returns a pod by name, and by UID if that is given.
func (r *room) Get(ns, name string, uid types.UID) (*v1.Pod, bool) {
	for _, pod := range r.List() {
		if pod.Namespace == ns && pod.Name == name && (uid == "" || pod.UID == uid) {
			return pod, true
		}
	}
	return nil, false
}

// ContainerID finds the runtime's id and the log file of a container: its newest attempt, or the one before.
// Errors: NotFound with the words that kubectl shows.
func (r *room) ContainerID(pod *v1.Pod, container string, previous bool) (id, logPath string, err error) {
	r.mu.Lock()
	a := r.pods[pod.UID]
	r.mu.Unlock()
	if a == nil {
		return "", "", fault.New(fault.NotFound, "pod %q in namespace %q is not on this node", pod.Name, pod.Namespace)
	}
	if spec, _ := plan.Lookup(pod, container); spec == nil {
		return "", "", fault.New(fault.Invalid, "container %s is not valid for pod %s", container, pod.Name)
	}
	have := state.Have{Containers: a.view.Load().Containers}
	c := have.Newest(container)
	if previous && c != nil {
		if c = have.Previous(container, c.Attempt); c == nil {
			return "", "", fault.New(fault.Invalid, "previous terminated container %q in pod %q not found", container, pod.Name)
		}
	}
	if c == nil {
		why := "ContainerCreating"
		if cs := statusOf(pod, container); cs != nil && cs.State.Waiting != nil {
			why = cs.State.Waiting.Reason
			if cs.State.Waiting.Message != "" {
				return "", "", fault.New(fault.Invalid, "container %q in pod %q is waiting to start: %s", container, pod.Name, cs.State.Waiting.Message)
			}
		}
		return "", "", fault.New(fault.Invalid, "container %q in pod %q is waiting to start: %s", container, pod.Name, why)
	}
	return c.ID, translate.LogDir(r.act.Node().LogRoot, pod) + "/" + translate.LogPath(c.Name, c.Attempt), nil
}

// runningLogs lists the logs that containers write to now.
func (r *room) runningLogs() []logs.Log {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []logs.Log
	for _, a := range r.pods {
		v := a.view.Load()
		for i := range v.Containers {
			if c := &v.Containers[i]; c.Phase == state.Running {
				out = append(out, logs.Log{ID: c.ID, Path: translate.LogDir(r.act.Node().LogRoot, v.Pod) + "/" + translate.LogPath(c.Name, c.Attempt)})
			}
		}
	}
	return out
}

func statusOf(pod *v1.Pod, container string) *v1.ContainerStatus {
	for _, list := range [][]v1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == container {
				return &list[i]
			}
		}
	}
	return nil
}
