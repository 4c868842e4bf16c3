package plan

import (
	"testing"
	"time"

	"worknode/kubelet/state"
)

// A container that ends at once may do so before the answer arrives that tells of its start: the event counts.
func TestEndOvertakesTheAnswer(t *testing.T) {
	now := time.Unix(0, 0)
	running := state.Container{Name: "web", ID: "c1", Sandbox: "s", Phase: state.Running, StartedAt: now}
	for _, c := range []struct {
		action Action
		answer Result
	}{
		{StartContainer{Container: "web"}, Result{Container: &running}},
		{Look{}, Result{World: &state.World{Sandboxes: []state.Sandbox{{ID: "s"}}, Containers: []state.Container{running}}}},
	} {
		h := &state.Have{Sandbox: state.Sandbox{ID: "s"}}
		Begin(h, c.action, now)
		Happened(h, "c1", state.Died)
		Finish(h, c.action, c.answer, now)
		if got := h.ByID("c1"); got == nil || got.Phase != state.Exited || got.Known {
			t.Errorf("after %s: %+v, want it exited with an end that is still to be read", c.action.Key(), got)
		}
		if len(h.Early) > 0 {
			t.Errorf("after %s: early ends are kept for ever: %v", c.action.Key(), h.Early)
		}
	}
	h := &state.Have{}
	if Happened(h, "stranger", state.Died); len(h.Early) > 0 {
		t.Errorf("no call is under way that could name a stranger: %v", h.Early)
	}
}

// A gap in the events during a look is looked for by another look: the first one's answer may be older than the gap.
func TestGapDuringALookIsNotForgotten(t *testing.T) {
	now := time.Unix(0, 0)
	h := &state.Have{Lost: true}
	Begin(h, Look{}, now)
	if !h.Blind() {
		t.Error("it acts while it looks")
	}
	h.Lost = true
	Finish(h, Look{}, Result{World: &state.World{}}, now)
	if !h.Lost {
		t.Error("the gap is forgotten")
	}
	Begin(h, Look{}, now)
	if Finish(h, Look{}, Result{World: &state.World{}}, now); h.Blind() {
		t.Error("a look without a gap leaves nothing to look for")
	}
	Begin(h, Look{}, now)
	if Finish(h, Look{}, Result{Failed: state.Cause{Message: "no answer"}}, now); !h.Lost {
		t.Error("a look that failed saw nothing")
	}
}
