// Package plan decides what is to be done about one pod. It is the kubelet's heart and it is pure: from what is wanted,
// what is known and the time it computes the actions that may start now, the status to report and when to look again.
// It does nothing itself; the actor (kubelet/loop.go) starts the actions, records what comes of them (Begin, Finish,
// Happened in record.go) and plans again. So a crash at any instant is only an empty Have filled by looking.
//
// Reading order: plan.go, run.go (a pod that is to live), stop.go (one that is to end), status.go, record.go.
package plan

import (
	"time"

	v1 "k8s.io/api/core/v1"

	"worknode/kubelet/state"
)

// Plan is the answer to one look at a pod.
type Plan struct {
	Do     []Action     // may all start now, in this order, and run at the same time
	Status v1.PodStatus // to report to the API server
	End    state.End    // to be kept in Have: the pod's termination as decided
	Say    []Said       // events, each to be sent once
	Wake   time.Time    // plan again at this time at the latest; zero: only when something happens
	Why    string       // what we are waiting for or doing, for people
	Over   bool         // nothing of the pod is left on this node, and the API knows: forget it
}

// Said is an event with the topic and value under which it is remembered as sent.
type Said struct {
	Topic, Value string
	Say
}

// planner collects a plan. It reads want and have and never writes them.
type planner struct {
	want *state.Want
	have *state.Have
	pod  *v1.Pod
	now  time.Time
	Plan
}

// Pod plans for one pod. It is a function of its arguments alone and changes none of them.
func Pod(want *state.Want, have *state.Have, now time.Time) Plan {
	p := &planner{want: want, have: have, pod: want.Pod, now: now}
	p.End = p.end()
	switch {
	case have.Blind():
		p.look()
	default:
		p.silence()
		p.inspect()
		if p.End.Begun() {
			p.stop()
		} else {
			p.run()
			p.prune()
		}
	}
	p.report()
	if p.End.Begun() && !have.Blind() {
		p.over()
	}
	return p.Plan
}

// try plans an action unless it is running or still has to wait after a failure. It says whether the action is new.
func (p *planner) try(a Action) bool {
	key := a.Key()
	if p.have.Busy(key) {
		return false
	}
	if b := broken(p.have, a); b != nil && p.now.Before(b.RetryAt) {
		p.wake(b.RetryAt)
		return false
	}
	p.Do = append(p.Do, a)
	return true
}

// broken finds the failure of an action; that of another image does not count.
func broken(h *state.Have, a Action) *state.Broken {
	b := state.Find(h.Broken, a.Key())
	if image, is := a.(EnsureImage); is && b != nil && b.Of != image.Image {
		return nil
	}
	return b
}

// wake asks to plan again at t, if nothing happens before.
func (p *planner) wake(t time.Time) {
	if p.Wake.IsZero() || t.Before(p.Wake) {
		p.Wake = t
	}
}

// because keeps the first reason: the one nearest to the pod's progress.
func (p *planner) because(why string) {
	if p.Why == "" {
		p.Why = why
	}
}

// look asks the runtime what it has, once no call is under way whose result could be older or newer than the answer.
func (p *planner) look() {
	p.because("a reply from the runtime was lost: looking what it has")
	for i := range p.have.Running {
		if touchesRuntime(p.have.Running[i].Key) {
			return
		}
	}
	p.try(Look{})
}

// touchesRuntime says whether the action of this key makes or removes sandboxes or containers.
func touchesRuntime(key string) bool {
	return key == "sandbox" || hasPrefix(key, "start/") || hasPrefix(key, "remove/") || hasPrefix(key, "remove-sandbox/")
}

func hasPrefix(s, prefix string) bool { return len(s) >= len(prefix) && s[:len(prefix)] == prefix }

// inspect asks how containers ended of which only the end is known.
func (p *planner) inspect() {
	for i := range p.have.Containers {
		if c := &p.have.Containers[i]; c.Phase == state.Exited && !c.Known {
			p.try(Inspect{c.Name, c.ID})
			p.because("reading how " + c.Name + " ended")
		}
	}
}

// prune removes attempts that nobody needs: the last one of each name stays, and the one before it for its log.
func (p *planner) prune() {
	for i := range p.have.Containers {
		c := &p.have.Containers[i]
		if c.Phase != state.Exited || !c.Known {
			continue
		}
		newer := 0
		for j := range p.have.Containers {
			if o := &p.have.Containers[j]; o.Name == c.Name && o.Attempt > c.Attempt {
				newer++
			}
		}
		if newer >= 2 {
			p.try(RemoveContainer{c.Name, c.ID, c.Attempt})
		}
	}
	for _, s := range p.have.Stale {
		p.dropStale(s)
	}
}

// dropStale ends an old sandbox. Its record stays while a container of it is kept for its log.
func (p *planner) dropStale(s state.Sandbox) {
	if s.Ready {
		p.try(StopSandbox{s.ID})
		return
	}
	for i := range p.have.Containers {
		if c := &p.have.Containers[i]; c.Sandbox == s.ID && c.Phase != state.Gone {
			return
		}
	}
	p.try(RemoveSandbox{ID: s.ID})
}
