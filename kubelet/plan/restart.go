package plan

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"

	"worknode/kubelet/state"
)

// The restart back-off that users of Kubernetes know: the first restart is immediate, the next ones wait 10 s, 20 s, 40 s
// up to five minutes after the end of the last run; a run of more than ten minutes starts over.
const (
	backoffFirst = 10 * time.Second
	backoffMost  = 300 * time.Second
	backoffReset = 600 * time.Second
)

// backoff returns how long the next attempt has to wait after the end of c, and what is to be stored with that attempt
// for the one after it.
func (p *planner) backoff(spec *v1.Container, c *state.Container) (wait, next time.Duration) {
	switch {
	case c == nil || changed(spec, c):
		return 0, 0
	case c.Backoff == 0 || c.FinishedAt.Sub(c.CreatedAt) > backoffReset:
		return 0, backoffFirst
	}
	return c.Backoff, min(2*c.Backoff, backoffMost)
}

func (p *planner) nextBackoff(spec *v1.Container, c *state.Container) time.Duration {
	_, next := p.backoff(spec, c)
	return next
}

// due says whether an ended attempt is to be followed by another one now, and if later, when to look again.
func (p *planner) due(spec *v1.Container, c *state.Container, init bool) bool {
	if !again(p.pod, spec, init, c) {
		return false
	}
	wait, _ := p.backoff(spec, c)
	if at := c.FinishedAt.Add(wait); p.now.Before(at) {
		p.wake(at)
		p.say("backoff/"+spec.Name, fmt.Sprint(c.Attempt), Say{
			Container: spec.Name, Warning: true, Reason: "BackOff",
			Message: fmt.Sprintf("Back-off restarting failed container %s in pod %s", spec.Name, p.fullName()),
		})
		p.because("back-off: restarting " + spec.Name + " later")
		return false
	}
	return true
}

// waiting says whether the container is to be restarted but has to wait, and the message the status carries for it.
func (p *planner) waiting(spec *v1.Container, c *state.Container, init bool) (string, bool) {
	if p.End.Begun() || c.Phase != state.Exited || !c.Known || !again(p.pod, spec, init, c) {
		return "", false
	}
	wait, _ := p.backoff(spec, c)
	if !p.now.Before(c.FinishedAt.Add(wait)) {
		return "", false
	}
	return fmt.Sprintf("back-off %s restarting failed container=%s pod=%s", wait, spec.Name, p.fullName()), true
}

// fullName is the pod as upstream's messages write it: name_namespace(uid).
func (p *planner) fullName() string {
	return p.pod.Name + "_" + p.pod.Namespace + "(" + string(p.pod.UID) + ")"
}

// say plans an event unless it is the last one of its topic.
func (p *planner) say(topic, value string, s Say) {
	if last := state.Find(p.have.Said, topic); last != nil && *last == value {
		return
	}
	p.Say = append(p.Say, Said{topic, value, s})
}
