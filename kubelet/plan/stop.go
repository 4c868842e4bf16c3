package plan

import (
	"time"

	v1 "k8s.io/api/core/v1"

	"worknode/kubelet/state"
)

const (
	leastGrace = 2 * time.Second // a process always gets this long between the stop signal and SIGKILL
	orphanWait = 1 * time.Second
)

// end decides whether the pod is to end, why, and until when. Once begun it stays, and the grace can only shrink.
func (p *planner) end() state.End {
	end := p.have.End
	cause, asked, ends := p.ending()
	if !ends {
		return end
	}
	asked = max(asked, time.Second)
	switch {
	case !end.Begun():
		end = state.End{Since: p.now, Grace: asked, Asked: asked, Cause: cause}
	case asked < end.Asked:
		end.Asked = asked
		end.Grace = min(end.Grace, p.now.Add(asked).Sub(end.Since))
	}
	return end
}

// ending finds what ends the pod, strongest first.
func (p *planner) ending() (cause state.Cause, grace time.Duration, ends bool) {
	pod := p.pod
	own := seconds(pod.Spec.TerminationGracePeriodSeconds, 30)
	switch {
	case p.want.Orphan:
		return state.Cause{}, orphanWait, true
	case p.want.Reject.Reason != "":
		return p.want.Reject, 0, true
	case p.want.Gone || pod.DeletionTimestamp != nil:
		return state.Cause{}, seconds(pod.DeletionGracePeriodSeconds, int64(own/time.Second)), true
	case p.want.Kill.Reason != "":
		return p.want.Kill.Cause, seconds(p.want.Kill.Grace, int64(own/time.Second)), true
	}
	if at, ok := p.deadline(); ok {
		if !p.now.Before(at) {
			p.say("deadline", "over", Say{Reason: "DeadlineExceeded", Message: "Pod was active on the node longer than the specified deadline"})
			return state.Cause{Reason: "DeadlineExceeded", Message: "Pod was active on the node longer than the specified deadline"}, own, true
		}
		p.wake(at)
	}
	// The API server may know the end already: this kubelet wrote it before it was restarted.
	if terminal(p.have.Status.Phase) || p.finished() {
		return state.Cause{}, own, true
	}
	return state.Cause{}, 0, false
}

// deadline is when activeDeadlineSeconds runs out, counted from status.startTime.
func (p *planner) deadline() (time.Time, bool) {
	limit, start := p.pod.Spec.ActiveDeadlineSeconds, p.have.Status.StartTime
	if limit == nil || start == nil {
		return time.Time{}, false
	}
	return start.Add(time.Duration(*limit) * time.Second), true
}

func seconds(s *int64, otherwise int64) time.Duration {
	if s != nil {
		otherwise = *s
	}
	return time.Duration(otherwise) * time.Second
}

// finished says whether the pod came to its natural end: an init container failed for good, or no main container runs
// or will run again. Sidecars do not count.
func (p *planner) finished() bool {
	for i := range p.pod.Spec.InitContainers {
		spec := &p.pod.Spec.InitContainers[i]
		c := p.have.Newest(spec.Name)
		if Sidecar(spec) {
			continue
		}
		if c != nil && c.Phase == state.Exited && c.Known && c.ExitCode != 0 && !again(p.pod, spec, true, c) {
			return true
		}
	}
	for i := range p.pod.Spec.Containers {
		spec := &p.pod.Spec.Containers[i]
		c := p.have.Newest(spec.Name)
		switch {
		case c == nil && p.vanished(spec) && !forever(p.pod, spec) && !p.have.Busy("start/"+spec.Name):
			continue // it ran, the runtime lost it, and it may not run twice
		case c == nil, c.Phase != state.Exited, !c.Known, again(p.pod, spec, false, c):
			return false
		}
	}
	return true
}

// stop plans for a pod that is to end: containers first, sidecars after all others in reverse order, then what they
// stood on.
func (p *planner) stop() {
	alive := false
	for i := range p.have.Containers {
		c := &p.have.Containers[i]
		spec, _ := Lookup(p.pod, c.Name)
		if !c.Alive() || spec != nil && Sidecar(spec) {
			continue
		}
		alive = true
		p.stopOne(c, 0, "Stopping container "+c.Name, false)
	}
	for i := len(p.pod.Spec.InitContainers) - 1; i >= 0 && !alive; i-- {
		spec := &p.pod.Spec.InitContainers[i]
		if c := p.have.Newest(spec.Name); Sidecar(spec) && c != nil && c.Alive() {
			alive = true
			p.stopOne(c, 0, "Stopping container "+c.Name, false)
		}
	}
	p.quiet()
	if alive {
		p.because("stopping containers")
		return
	}
	p.clean()
}

// quiet ends the probes that could disturb a termination. Readiness goes on until the containers are down, so that
// Services see a pod that drains.
func (p *planner) quiet() {
	for i := range p.have.Containers {
		c := &p.have.Containers[i]
		if c.Alive() {
			p.drop(c, Startup, c.Probe.StartupOn)
			p.drop(c, Liveness, c.Probe.AliveOn)
		}
	}
}

// stopOne plans the next step of stopping one attempt: the preStop hook, which is charged to the grace, then the stop.
// grace counts from the decision; in a pod that ends its deadline counts instead. A shorter grace overtakes a longer one.
func (p *planner) stopOne(c *state.Container, grace time.Duration, because string, again bool) {
	since := c.StopSince
	spec, _ := Lookup(p.pod, c.Name)
	if since.IsZero() {
		since = p.now
		if because != "" {
			p.say("kill/"+c.Name, c.ID, Say{Container: c.Name, Reason: "Killing", Message: because})
		}
	}
	deadline := since.Add(grace)
	if p.End.Begun() {
		deadline = p.End.Deadline()
	}
	left := max(deadline.Sub(p.now), leastGrace)
	if c.StopBy.IsZero() && c.Phase == state.Running && spec != nil && preStop(spec) {
		if c.PreStop == state.HookNone {
			p.try(RunHook{Container: c.Name, ID: c.ID, Hook: PreStop, Again: again, For: max(deadline.Sub(p.now), time.Second)})
			return
		}
		if p.have.Busy("hook/preStop/"+c.ID) && p.now.Before(deadline) {
			p.wake(deadline)
			return
		}
	}
	harder := 0
	for n := range 10 {
		if p.have.Busy(StopContainer{ID: c.ID, Harder: n}.Key()) {
			harder = n + 1
		}
	}
	if harder > 0 && !p.now.Add(left).Before(c.StopBy.Add(-time.Second)) {
		return // on its way, and soon enough
	}
	p.try(StopContainer{Container: c.Name, ID: c.ID, Grace: left, Again: again, Harder: harder})
}

// grace is what a container gets that is stopped while its pod lives on.
func (p *planner) grace() time.Duration {
	return seconds(p.pod.Spec.TerminationGracePeriodSeconds, 30)
}

// graceAfter is the grace of a container that failed a probe: the probe may name its own.
func (p *planner) graceAfter(spec *v1.Container, c *state.Container) time.Duration {
	for _, one := range []struct {
		probe   *v1.Probe
		verdict state.Verdict
	}{{spec.StartupProbe, c.Probe.Startup}, {spec.LivenessProbe, c.Probe.Liveness}} {
		if one.probe != nil && one.verdict == state.Failure && one.probe.TerminationGracePeriodSeconds != nil {
			return seconds(one.probe.TerminationGracePeriodSeconds, 30)
		}
	}
	return p.grace()
}
