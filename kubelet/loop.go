package kubelet

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"worknode/kubelet/plan"
	"worknode/kubelet/state"
	"worknode/kubelet/status"
)

// actor owns one pod: its Want, its Have and what is done about it. Others send it letters; nobody else writes its state.
//
//	letter ─▶ record in Have ─▶ plan.Pod ─▶ start actions, report status, set the timer ─▶ wait for the next letter
type actor struct {
	uid  types.UID
	room *room
	log  *slog.Logger

	mu   sync.Mutex
	post letters
	wake chan struct{} // holds one token while post has something unread

	want state.Want
	have state.Have
	why  string
	sent bool // a status was handed to the writer since the start

	view atomic.Pointer[view]
}

// letters is the mailbox. It holds the newest of each kind, so it needs no bound and nobody who writes ever waits.
type letters struct {
	pod      *v1.Pod
	gone     bool
	lost     bool // the runtime's news had a gap: look
	changed  bool // an object that the pod uses
	written  *status.Written
	events   map[string]state.Event // by container id; later events are the greater ones
	verdicts map[verdictKey]verdict
	done     []finished // bounded by the actions under way
	census   *int       // running containers, as an audit counted them
}

type verdictKey struct {
	container string
	kind      plan.Kind
}

type verdict struct {
	id    string
	state state.Verdict
}

type finished struct {
	action plan.Action
	result plan.Result
}

// view is what others may see of an actor: a copy that is replaced and never changed.
type view struct {
	Pod        *v1.Pod // with the newest status
	Containers []state.Container
	Why        string
	Ended      bool // nothing of it runs or will run: it no longer counts against the node's capacity
}

// send puts something into the mailbox.
func (a *actor) send(write func(*letters)) {
	a.mu.Lock()
	write(&a.post)
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// run is the actor's life. It ends with ctx, or when nothing of the pod is left.
func (a *actor) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		p, over := a.turn(ctx)
		if over {
			a.room.forget(a)
			return
		}
		timer.Stop()
		if !p.IsZero() {
			timer.Reset(max(time.Until(p), time.Millisecond))
		}
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-a.wake:
		}
	}
}

// turn reads the mail, plans, and acts on the plan until it has nothing more to start.
func (a *actor) turn(ctx context.Context) (wake time.Time, over bool) {
	a.read()
	for {
		now := time.Now()
		p := plan.Pod(&a.want, &a.have, now)
		if p.End != a.have.End {
			a.end(p.End)
		}
		quick := false
		for _, action := range p.Do {
			plan.Begin(&a.have, action, now)
			if plan.Quick(action) {
				a.room.quick(a, action)
				quick = true
				continue
			}
			a.begin(action)
		}
		for _, s := range p.Say {
			a.have.Said = state.Put(a.have.Said, s.Topic, s.Value)
			a.room.say(a.want.Pod, s.Say)
		}
		a.report(&p)
		if quick && ctx.Err() == nil {
			continue // what is done on the spot may let something else start
		}
		return p.Wake, p.Over
	}
}

// begin starts an action beside the actor; its result comes back as a letter.
func (a *actor) begin(action plan.Action) {
	pod := a.want.Pod
	if a.log.Enabled(context.Background(), slog.LevelDebug) {
		a.log.Debug("begin", "action", action.Key())
	}
	a.room.tasks.Go(pod.Namespace+"/"+pod.Name+" "+action.Key(), func(ctx context.Context) {
		// A panic in an action must not leave the actor waiting for ever: it becomes a failure like any other.
		result := plan.Result{Failed: state.Cause{Reason: "InternalError", Message: "the action ended without a result; see the log"}, Lost: true}
		defer func() { a.send(func(l *letters) { l.done = append(l.done, finished{action, result}) }) }()
		result = a.room.act.Do(ctx, pod, action)
	})
}

// end notes that the pod's termination began or became shorter, before anything is done about it.
func (a *actor) end(end state.End) {
	if !a.have.End.Begun() {
		a.log.Info("pod is ending", "grace", end.Grace, "reason", end.Reason)
	}
	a.have.End = end
	if !a.have.Alive() {
		return // nothing is waiting for a deadline
	}
	if err := a.room.act.KeepEnd(a.uid, end); err != nil {
		a.log.Warn("a restarted kubelet would give this pod its whole grace period again", "err", err)
	}
}

// report hands a changed status to the writer and to those who look at the pod.
func (a *actor) report(p *plan.Plan) {
	same := status.Same(&a.have.Status, &p.Status)
	if !same || !a.sent {
		a.have.Status = p.Status
		if a.have.Status.Phase != "" && !a.want.Gone && !a.want.Orphan {
			a.sent = true
			published := p.Status
			a.room.writer.Set(a.want.Pod, &published)
		}
	}
	if p.Why != a.why {
		a.why = p.Why
		a.log.Debug("plan", "why", p.Why)
	}
	a.show()
}

// show publishes the view of the pod.
func (a *actor) show() {
	pod := *a.want.Pod
	pod.Status = a.have.Status
	a.view.Store(&view{
		Pod: &pod, Containers: slices.Clone(a.have.Containers), Why: a.why,
		Ended: a.want.Reject.Reason != "" || a.have.End.Begun() && !a.have.Alive() && terminal(a.have.Status.Phase),
	})
}

func terminal(p v1.PodPhase) bool { return p == v1.PodFailed || p == v1.PodSucceeded }

// read takes all letters and records them.
func (a *actor) read() {
	a.mu.Lock()
	post := a.post
	a.post = letters{}
	a.mu.Unlock()
	now := time.Now()
	if post.pod != nil {
		a.update(post.pod)
	}
	if post.gone && !a.want.Gone {
		a.want.Gone = true
		a.log.Info("pod's object is gone")
	}
	for _, f := range post.done {
		a.finish(f, now)
	}
	for id, e := range post.events {
		if plan.Happened(&a.have, id, e) && e == state.Died {
			if c := a.have.ByID(id); c != nil {
				a.log.Info("container ended", "container", c.Name, "id", id)
			}
		}
	}
	for k, v := range post.verdicts {
		if plan.Judged(&a.have, k.container, v.id, k.kind, v.state) {
			a.log.Info("probe", "container", k.container, "kind", k.kind, "verdict", v.state)
		}
	}
	if post.changed {
		plan.Changed(&a.have)
	}
	if w := post.written; w != nil && !w.Gone {
		a.have.Written = w.Phase
	}
	if post.lost {
		a.have.Lost = true
	}
	if post.census != nil {
		a.audit(*post.census)
	}
}

// finish records a result and tells of it.
func (a *actor) finish(f finished, now time.Time) {
	for _, s := range plan.Finish(&a.have, f.action, f.result, now) {
		a.room.say(a.want.Pod, s)
	}
	if m := f.result.Failed; m.Message != "" && !f.result.Lost {
		if b := state.Find(a.have.Broken, f.action.Key()); b == nil || b.Count == 1 {
			a.log.Warn("action did not succeed", "action", f.action.Key(), "reason", m.Reason, "err", m.Message)
		}
		return
	}
	if t, ok := f.action.(plan.StartContainer); ok && f.result.Container != nil {
		a.log.Info("container started", "container", t.Container, "id", f.result.Container.ID, "attempt", t.Attempt)
	}
	if c := f.result.Container; c != nil && c.Phase == state.Exited {
		a.log.Info("container exited", "container", c.Name, "id", c.ID, "code", c.ExitCode, "reason", c.Reason)
	}
}

// update takes a newer version of the pod's object. What others wrote into its status is taken over; our own status
// comes back with every write and is not news.
func (a *actor) update(pod *v1.Pod) {
	old := a.want.Pod
	a.foreign(pod.Status.Conditions)
	if !maps.Equal(old.Labels, pod.Labels) || !maps.Equal(old.Annotations, pod.Annotations) {
		a.have.Changed = true // downward API files tell of them
	}
	if a.have.Status.QOSClass == "" {
		a.have.Status.QOSClass = pod.Status.QOSClass
	}
	pod.Status = v1.PodStatus{} // ours is in Have
	a.want.Pod = pod
	if old.Generation != pod.Generation {
		a.room.objects.Use(pod)
	}
}

// foreign takes over the conditions that other controllers own.
func (a *actor) foreign(theirs []v1.PodCondition) {
	var out []v1.PodCondition
	for _, c := range a.have.Status.Conditions {
		if status.Owned(c.Type) {
			out = append(out, c)
		}
	}
	for _, c := range theirs {
		if !status.Owned(c.Type) {
			out = append(out, c)
		}
	}
	a.have.Status.Conditions = out
}

// audit compares the runtime's count of running containers with ours. A difference that no call under way explains is
// something the events missed.
func (a *actor) audit(running int) {
	for i := range a.have.Containers {
		if a.have.Containers[i].Phase == state.Running {
			running--
		}
	}
	if running != 0 && len(a.have.Running) == 0 {
		a.log.Warn("the runtime runs other containers than its events told: looking", "difference", running)
		a.room.missed.Add(1)
		a.have.Lost = true
	}
}
