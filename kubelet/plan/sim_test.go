package plan

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"worknode/fault"
	"worknode/kubelet/state"
)

// The simulator drives the planner against a model of the node: a runtime that loses replies, containers that exit at any
// time, an API server that takes statuses late, and a kubelet that is killed at every step. After a while of chaos the pod
// is deleted and everything works: then it must end. What must never happen is checked at every step (see check).
//
// WORKNODE_SIM_SEED replays one run, printed with each failure; WORKNODE_SIM_RUNS sets how many there are.

func TestSimulatedChaos(t *testing.T) {
	if s := os.Getenv("WORKNODE_SIM_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		w := simulate(seed)
		t.Log(strings.Join(w.log, "\n"))
		if w.broken != "" {
			t.Fatal(w.broken)
		}
		return
	}
	runs := 1500
	if n, err := strconv.Atoi(os.Getenv("WORKNODE_SIM_RUNS")); err == nil {
		runs = n
	}
	var crashes, starts, ended int
	for seed := range uint64(runs) {
		w := simulate(seed)
		if w.broken != "" {
			t.Fatalf("WORKNODE_SIM_SEED=%d: %s\n%s", seed, w.broken, strings.Join(w.log[max(0, len(w.log)-60):], "\n"))
		}
		crashes, starts, ended = crashes+w.crashes, starts+w.starts, ended+w.ended
	}
	t.Logf("%d runs: %d crashes, %d container starts, %d pods ended by themselves", runs, crashes, starts, ended)
	if crashes < runs || starts < runs || ended == 0 {
		t.Fatal("the simulation did too little to mean anything")
	}
}

type simContainer struct {
	state.Container
	starts int
}

type inFlight struct {
	action Action
}

// sim is the world outside the planner, and the kubelet's memory that a crash wipes.
type sim struct {
	r   *rand.Rand
	now time.Time

	// The node.
	nextID     int
	sandboxes  []state.Sandbox
	containers []simContainer
	hooks      map[string]state.Hook // marks on disk
	end        state.End             // mark on disk
	volumes    bool
	cgroup     bool

	// The API server.
	pod     *v1.Pod
	exists  bool
	status  v1.PodStatus
	pending *v1.PodStatus // on its way to the server

	// The kubelet.
	want   state.Want
	have   state.Have
	flight []inFlight
	over   bool

	calm    bool
	crashes int
	starts  int
	ended   int
	broken  string
	log     []string
	last    map[string]state.Container // the newest attempt that ended, by name; it outlives the runtime's record
}

func (w *sim) note(format string, args ...any) {
	w.log = append(w.log, w.now.Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

func (w *sim) fail(format string, args ...any) {
	if w.broken == "" {
		w.broken = fmt.Sprintf(format, args...)
		w.note("BROKEN %s", w.broken)
	}
}

func (w *sim) chance(percent int) bool { return w.r.IntN(100) < percent }

func simulate(seed uint64) *sim {
	w := &sim{
		r: rand.New(rand.NewPCG(seed, 7)), now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		hooks: map[string]state.Hook{}, last: map[string]state.Container{}, exists: true,
	}
	w.pod = w.somePod()
	w.status.Phase = v1.PodPending
	w.boot()
	for range 60 + w.r.IntN(120) {
		w.step()
		if w.broken != "" || w.over {
			return w
		}
	}
	w.settle()
	return w
}

func (w *sim) somePod() *v1.Pod {
	grace := int64(w.r.IntN(20))
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "u"}}
	pod.Spec.TerminationGracePeriodSeconds = &grace
	pod.Spec.RestartPolicy = []v1.RestartPolicy{v1.RestartPolicyAlways, v1.RestartPolicyOnFailure, v1.RestartPolicyNever}[w.r.IntN(3)]
	always := v1.ContainerRestartPolicyAlways
	for i := range w.r.IntN(3) {
		c := v1.Container{Name: fmt.Sprintf("init%d", i), Image: "i"}
		if w.chance(30) {
			c.RestartPolicy = &always
			w.garnish(&c)
		}
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, c)
	}
	for i := range 1 + w.r.IntN(2) {
		c := v1.Container{Name: fmt.Sprintf("main%d", i), Image: "i"}
		w.garnish(&c)
		pod.Spec.Containers = append(pod.Spec.Containers, c)
	}
	if w.chance(10) {
		limit := int64(30)
		pod.Spec.ActiveDeadlineSeconds = &limit
	}
	return pod
}

func (w *sim) garnish(c *v1.Container) {
	hook := &v1.LifecycleHandler{Exec: &v1.ExecAction{}}
	if w.chance(20) {
		c.Lifecycle = &v1.Lifecycle{PostStart: hook}
	}
	if w.chance(20) {
		c.Lifecycle = &v1.Lifecycle{PreStop: hook}
	}
	if w.chance(20) {
		c.StartupProbe = &v1.Probe{}
	}
	if w.chance(20) {
		c.ReadinessProbe = &v1.Probe{}
	}
	if w.chance(20) {
		c.LivenessProbe = &v1.Probe{}
	}
}

// boot is the start of a kubelet: it forgets all and looks.
func (w *sim) boot() {
	w.want, w.have, w.flight = state.Want{Pod: w.pod, Runtime: "r", Gone: false}, state.Have{Status: w.status}, nil
	if !w.exists {
		w.want = state.Want{Pod: &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u"}}, Orphan: true}
		w.have.Status = v1.PodStatus{}
	}
	Adopt(&w.have, w.world(), w.volumes || w.cgroup || w.end.Begun())
	w.have.End = w.end
	w.pending = nil
}

func (w *sim) world() state.World {
	var out state.World
	out.Sandboxes = slices.Clone(w.sandboxes)
	for _, c := range w.containers {
		one := c.Container
		one.Known = one.Phase == state.Exited
		one.PostStart, one.PreStop = w.hooks["postStart"+c.ID], w.hooks["preStop"+c.ID]
		out.Containers = append(out.Containers, one)
	}
	return out
}

// step does one random thing and lets the kubelet plan.
func (w *sim) step() {
	switch n := w.r.IntN(100); {
	case n < 55:
		w.finishOne()
	case n < 65:
		w.exitOne()
	case n < 72:
		w.land()
	case n < 77:
		w.judge()
	case n < 84:
		w.advance(time.Duration(w.r.IntN(3000)) * time.Millisecond)
	case n < 90:
		w.crash()
	case n < 92:
		w.loseSandbox()
	case n < 94:
		w.deleteByUser()
	case n < 95:
		w.have.Lost = true // an audit, or a gap in the events
	case n < 96:
		w.apiVanishes()
	default:
		w.advance(time.Duration(w.r.IntN(400)) * time.Second)
	}
	w.plan()
}

func (w *sim) plan() {
	for range 20 {
		if w.over || w.broken != "" {
			return
		}
		p := Pod(&w.want, &w.have, w.now)
		if p.End != w.have.End {
			w.have.End = p.End
			if w.have.Alive() {
				w.end = p.End
			}
		}
		quick := false
		for _, a := range p.Do {
			w.note("begin %s", a.Key())
			Begin(&w.have, a, w.now)
			if Quick(a) {
				quick = true
				continue
			}
			if h, ok := a.(RunHook); ok {
				if w.hooks[string(h.Hook)+h.ID] == state.HookBegun {
					w.fail("hook %s of %s runs twice", h.Hook, h.ID)
				}
				w.hooks[string(h.Hook)+h.ID] = state.HookBegun
			}
			w.flight = append(w.flight, inFlight{action: a})
		}
		for _, s := range p.Say {
			w.have.Said = state.Put(w.have.Said, s.Topic, s.Value)
		}
		w.have.Status = p.Status
		if w.exists && !w.want.Gone && !w.want.Orphan {
			s := p.Status
			w.pending = &s
		}
		w.checkStatus(&p.Status)
		if p.Over {
			w.checkOver()
			w.over = true
			return
		}
		if !quick {
			return
		}
	}
	w.fail("planning does not come to rest")
}

// settle ends the chaos: the user deletes the pod, everything works, and it must come to its end.
func (w *sim) settle() {
	w.calm = true
	w.deleteByUser()
	for range 400 {
		if w.over || w.broken != "" {
			return
		}
		w.plan()
		switch {
		case len(w.flight) > 0:
			w.finishOne()
		default:
			w.land()
			w.advance(2 * time.Second)
		}
	}
	p := Pod(&w.want, &w.have, w.now)
	w.fail("termination does not end: %s; have %v sandbox=%+v volumes=%v cgroup=%v running=%v broken=%v lost=%v", p.Why,
		w.have.Containers, w.have.Sandbox, w.have.Volumes, w.have.Cgroup, w.have.Running, w.have.Broken, w.have.Lost)
}

// finishOne completes one action: it works, or fails, or nobody knows.
func (w *sim) finishOne() {
	if len(w.flight) == 0 {
		return
	}
	i := w.r.IntN(len(w.flight))
	f := w.flight[i]
	w.flight = slices.Delete(w.flight, i, i+1)
	var result Result
	switch {
	case w.calm || w.chance(80):
		result = w.apply(f.action)
	case w.chance(50):
		result = Result{Failed: state.Cause{Reason: "SimError", Message: "refused"}, Kind: fault.Temporary}
	default:
		if w.chance(50) {
			w.apply(f.action)
		}
		result = Result{Failed: state.Cause{Reason: "SimLost", Message: "no answer"}, Lost: true, Kind: fault.Temporary}
	}
	if !w.calm && w.chance(20) {
		w.exitOne() // its event overtakes the answer
	}
	w.note("finish %s: %s lost=%v", f.action.Key(), result.Failed.Reason, result.Lost)
	Finish(&w.have, f.action, result, w.now)
}

// crash kills the kubelet. What was under way happens or does not; nobody hears of it.
func (w *sim) crash() {
	w.crashes++
	for _, f := range w.flight {
		if w.chance(50) {
			w.apply(f.action)
		}
	}
	if w.pending != nil && w.chance(50) {
		w.land()
	}
	w.note("kill -9 of the kubelet")
	w.boot()
}

func (w *sim) advance(d time.Duration) { w.now = w.now.Add(d) }

// land lets the API server take the newest status.
func (w *sim) land() {
	if w.pending == nil || !w.exists {
		w.pending = nil
		return
	}
	if terminal(w.pending.Phase) && w.anyRunning() {
		w.fail("the API server was told %s while a container runs", w.pending.Phase)
	}
	if w.pending.Phase == v1.PodSucceeded && w.status.Phase != v1.PodSucceeded {
		for i := range w.pod.Spec.Containers {
			if name := w.pod.Spec.Containers[i].Name; w.last[name].ExitCode != 0 {
				w.fail("the API server was told Succeeded though %s ended with %d", name, w.last[name].ExitCode)
			}
		}
	}
	w.status, w.pending = *w.pending, nil
	w.have.Written = w.status.Phase
	if terminal(w.status.Phase) {
		w.ended++
	}
}

func (w *sim) anyRunning() bool {
	return slices.ContainsFunc(w.containers, func(c simContainer) bool { return c.Phase == state.Running })
}

func (w *sim) deleteByUser() {
	if w.pod.DeletionTimestamp != nil || !w.exists {
		return
	}
	pod := w.pod.DeepCopy()
	at := metav1.NewTime(w.now)
	pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = &at, pod.Spec.TerminationGracePeriodSeconds
	w.note("kubectl delete, grace %d", *pod.DeletionGracePeriodSeconds)
	w.pod = pod
	if !w.want.Orphan {
		w.want.Pod = pod
	}
}

func (w *sim) apiVanishes() {
	if w.exists && w.chance(20) {
		w.note("kubectl delete --force")
		w.exists, w.pending = false, nil
		w.want.Gone = true
	}
}

func (w *sim) exitOne() {
	for i := range w.containers {
		c := &w.containers[i]
		if c.Phase == state.Running && w.chance(50) {
			w.exits(c, int32(w.r.IntN(2)))
			if w.chance(80) {
				Happened(&w.have, c.ID, state.Died)
			} else {
				w.have.Lost = true
			}
			return
		}
	}
}

func (w *sim) exits(c *simContainer, code int32) {
	c.Phase, c.ExitCode, c.FinishedAt = state.Exited, code, w.now
	w.remember(c)
	w.note("%s exits with %d", c.ID, code)
}

func (w *sim) remember(c *simContainer) {
	if c.Attempt >= w.last[c.Name].Attempt {
		w.last[c.Name] = c.Container
	}
}

func (w *sim) loseSandbox() {
	for i := range w.sandboxes {
		if w.sandboxes[i].Ready {
			w.sandboxes[i].Ready = false
			w.note("sandbox %s breaks", w.sandboxes[i].ID)
			Happened(&w.have, w.sandboxes[i].ID, state.Died)
			return
		}
	}
}

func (w *sim) judge() {
	if len(w.have.Containers) == 0 {
		return
	}
	c := w.have.Containers[w.r.IntN(len(w.have.Containers))]
	verdict := state.Success
	if w.chance(30) {
		verdict = state.Failure
	}
	switch {
	case c.Probe.StartupOn:
		Judged(&w.have, c.Name, c.ID, Startup, verdict)
	case c.Probe.ReadinessOn && w.chance(50):
		Judged(&w.have, c.Name, c.ID, Readiness, verdict)
	case c.Probe.AliveOn:
		Judged(&w.have, c.Name, c.ID, Liveness, verdict)
	}
}
