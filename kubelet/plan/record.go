package plan

import (
	"slices"
	"strings"
	"time"

	"worknode/fault"
	"worknode/kubelet/state"
)

const (
	retryFirst   = 200 * time.Millisecond // after a failure that heals by itself, such as a runtime being restarted
	retryMost    = 10 * time.Second
	retryRefused = 10 * time.Second // after a failure that somebody has to mend
	showError    = 2 * time.Second  // ErrImagePull is shown this long before ImagePullBackOff
)

// Result is what came of an action. Failures are values: the plan decides what they mean.
type Result struct {
	// Failed, if it has a Reason or a Message, says that the action did not succeed; Kind says what may help.
	Failed state.Cause
	Kind   fault.Kind
	// Lost says that nobody knows whether it happened: the call ended without the peer's answer.
	Lost bool

	Sandbox   *state.Sandbox   // RunSandbox
	Container *state.Container // StartContainer (also when only the start failed), StopContainer, Inspect
	Image     *state.Image     // EnsureImage
	World     *state.World     // Look
}

func (r *Result) ok() bool { return r.Failed == state.Cause{} && !r.Lost }

// Begin records that an action is started.
func Begin(h *state.Have, a Action, now time.Time) {
	if !Quick(a) {
		h.Running = append(h.Running, state.Task{Key: a.Key(), Since: now})
	}
	switch a := a.(type) {
	case Look:
		h.Lost = false
	case RunSandbox:
		h.Cgroup = state.Dirty
	case MountVolumes:
		h.Volumes, h.Changed = state.Dirty, false
	case RefreshVolumes:
		h.Changed = false
	case RunHook:
		if c := h.ByID(a.ID); c != nil {
			if a.Hook == PostStart {
				c.PostStart = state.HookBegun
			} else {
				c.PreStop, c.Again = state.HookBegun, a.Again
				c.StopSince = first(c.StopSince, now)
			}
		}
	case StopContainer:
		if c := h.ByID(a.ID); c != nil {
			c.StopBy, c.Again = now.Add(a.Grace), a.Again
			c.StopSince = first(c.StopSince, now)
		}
	case SetProbe:
		h.Probed = true
		setProbe(h.ByID(a.ID), a.Kind, true)
	case DropProbe:
		setProbe(h.ByID(a.ID), a.Kind, false)
	case DropProbes:
		h.Probed = false
		for i := range h.Containers {
			for _, k := range [...]Kind{Startup, Readiness, Liveness} {
				setProbe(&h.Containers[i], k, false)
			}
		}
	}
}

func setProbe(c *state.Container, kind Kind, on bool) {
	if c == nil {
		return
	}
	switch kind {
	case Startup:
		c.Probe.StartupOn = on
	case Readiness:
		c.Probe.ReadinessOn = on
	case Liveness:
		c.Probe.AliveOn = on
	}
}

func first(t, now time.Time) time.Time {
	if t.IsZero() {
		return now
	}
	return t
}

// Finish records what came of an action and returns the events to send about it.
func Finish(h *state.Have, a Action, r Result, now time.Time) []Say {
	key := a.Key()
	h.Running = slices.DeleteFunc(h.Running, func(t state.Task) bool { return t.Key == key })
	if r.Lost {
		h.Lost = true
	}
	defer func() {
		if !discovering(h) {
			h.Early = nil
		}
	}()
	if r.ok() {
		h.Broken = state.Drop(h.Broken, key)
		done(h, a, r)
		return praise(a, r)
	}
	b := state.Broken{Count: 1, At: now, Kind: r.Kind, Cause: r.Failed}
	if image, is := a.(EnsureImage); is {
		b.Of = image.Image
	}
	if old := broken(h, a); old != nil {
		b.Count = old.Count + 1
	}
	b.RetryAt = now.Add(wait(a, b))
	h.Broken = state.Put(h.Broken, key, b)
	failed(h, a, r, now)
	return blame(a, r)
}

// wait says how long a failed action rests.
func wait(a Action, b state.Broken) time.Duration {
	if _, image := a.(EnsureImage); image && b.Kind != fault.Temporary && b.Reason == "ErrImagePull" {
		return double(backoffFirst, b.Count, backoffMost)
	}
	switch b.Kind {
	case fault.Invalid, fault.NotFound, fault.Denied, fault.Unsupported, fault.Exists:
		return retryRefused
	}
	return double(retryFirst, b.Count, retryMost)
}

func double(first time.Duration, count int, most time.Duration) time.Duration {
	d := first
	for ; count > 1 && d < most; count-- {
		d *= 2
	}
	return min(d, most)
}

// done records a success.
func done(h *state.Have, a Action, r Result) {
	switch a := a.(type) {
	case RunSandbox:
		if h.Sandbox.ID != "" && h.Sandbox.ID != r.Sandbox.ID {
			h.Sandbox.Ready = !h.Stopped
			h.Stale = append(h.Stale, h.Sandbox)
		}
		h.Sandbox, h.Stopped = *r.Sandbox, false
	case StopSandbox:
		if a.ID == h.Sandbox.ID {
			h.Stopped, h.Sandbox.Ready = true, false
		}
		for i := range h.Stale {
			if h.Stale[i].ID == a.ID {
				h.Stale[i].Ready = false
			}
		}
		for i := range h.Containers {
			if c := &h.Containers[i]; c.Sandbox == a.ID {
				move(c, state.Died)
			}
		}
	case RemoveSandbox:
		removeSandbox(h, a.ID)
	case MountVolumes:
		h.Volumes = state.Present
	case UnmountVolumes:
		h.Volumes = state.None
	case RemoveCgroup:
		h.Cgroup = state.None
	case EnsureImage:
		h.Images = state.Put(h.Images, a.Container, *r.Image)
	case StartContainer:
		h.Images = state.Drop(h.Images, a.Container)
		learn(h, *r.Container)
	case RunHook:
		hookDone(h, a, state.HookDone)
	case StopContainer:
		if r.Container != nil {
			learn(h, *r.Container)
		}
		if c := h.ByID(a.ID); c != nil {
			move(c, state.Died)
		}
	case Inspect:
		if r.Container == nil {
			remove(h, a.ID) // the runtime does not know it any more
			return
		}
		learn(h, *r.Container)
	case RemoveContainer:
		remove(h, a.ID)
	case Look:
		Merge(h, *r.World)
	case DeleteObject:
		h.Deleted = true
	}
}

func hookDone(h *state.Have, a RunHook, how state.Hook) {
	if c := h.ByID(a.ID); c != nil {
		if a.Hook == PostStart {
			c.PostStart = how
		} else {
			c.PreStop = how
		}
	}
}

// failed records what a failure leaves behind.
func failed(h *state.Have, a Action, r Result, now time.Time) {
	switch a := a.(type) {
	case Look:
		h.Lost = true
	case RunSandbox:
		h.Lost = true // a failed start may have left a record: the next plan looks
	case StartContainer:
		if r.Container != nil {
			learn(h, *r.Container)
			if c := h.ByID(r.Container.ID); c != nil && !r.Lost && c.Phase == state.Created {
				move(c, state.Refused)
				c.Known, c.ExitCode, c.Reason, c.Message = true, 128, "StartError", r.Failed.Message
				c.FinishedAt = now
			}
			if c := h.ByID(r.Container.ID); c != nil && c.Phase == state.Exited {
				h.Images = state.Drop(h.Images, a.Container)
				h.Broken = state.Drop(h.Broken, a.Key()) // the restart back-off takes over
			}
		}
	case RunHook:
		hookDone(h, a, state.HookFailed)
		h.Broken = state.Drop(h.Broken, a.Key())
	case StopContainer:
		if c := h.ByID(a.ID); c != nil {
			c.StopBy = time.Time{}
		}
		if r.Kind == fault.NotFound {
			remove(h, a.ID)
			h.Broken = state.Drop(h.Broken, a.Key())
		}
	case StopSandbox, RemoveSandbox, RemoveContainer:
		if r.Kind == fault.NotFound { // gone is what we wanted
			h.Broken = state.Drop(h.Broken, a.Key())
			done(h, a, r)
		}
	}
}

// move advances a container by an event; late and repeated events change nothing.
func move(c *state.Container, e state.Event) bool {
	next, ok := c.Phase.After(e)
	if ok {
		c.Phase = next
	}
	return ok
}

func remove(h *state.Have, id string) {
	h.Containers = slices.DeleteFunc(h.Containers, func(c state.Container) bool { return c.ID == id })
	h.Broken = slices.DeleteFunc(h.Broken, func(b state.Named[state.Broken]) bool { return strings.Contains(b.Name, "/"+id) })
}

func removeSandbox(h *state.Have, id string) {
	if h.Sandbox.ID == id {
		h.Sandbox, h.Stopped = state.Sandbox{}, false
	}
	h.Stale = slices.DeleteFunc(h.Stale, func(s state.Sandbox) bool { return s.ID == id })
	h.Containers = slices.DeleteFunc(h.Containers, func(c state.Container) bool { return c.Sandbox == id })
}

// learn takes over what the runtime says about a container, unless we know better: phases only move forward, and what
// we did with it stays.
func learn(h *state.Have, n state.Container) {
	c := h.ByID(n.ID)
	if c == nil {
		if slices.Contains(h.Early, n.ID) { // the answer is older than the end
			move(&n, state.Died)
		}
		h.Containers = append(h.Containers, n)
		return
	}
	if n.Phase < c.Phase {
		return
	}
	if n.Phase == state.Exited && !n.Known {
		move(c, state.Died)
		return
	}
	n.PostStart, n.PreStop = max(n.PostStart, c.PostStart), max(n.PreStop, c.PreStop)
	n.Probe, n.StopBy, n.StopSince, n.Again = c.Probe, c.StopBy, c.StopSince, c.Again
	if n.Backoff == 0 {
		n.Backoff = c.Backoff
	}
	if n.Sandbox == "" {
		n.Sandbox = c.Sandbox
	}
	if n.Image == "" {
		n.Image = c.Image
	}
	if c.ImageRef != "" {
		n.ImageRef = c.ImageRef
	}
	*c = n
}

// Merge brings in what a look at the runtime found. No call of ours was under way that makes or removes anything.
func Merge(h *state.Have, w state.World) {
	h.Stale = nil
	box := state.Sandbox{}
	for _, s := range w.Sandboxes {
		if box.ID == "" || s.Attempt > box.Attempt || s.Attempt == box.Attempt && s.CreatedAt.After(box.CreatedAt) {
			box = s
		}
	}
	for _, s := range w.Sandboxes {
		if s.ID != box.ID {
			h.Stale = append(h.Stale, s)
		}
	}
	if box.ID != h.Sandbox.ID {
		h.Stopped = false
	}
	h.Sandbox = box
	if box.ID != "" {
		h.Cgroup = state.Dirty
	}
	for _, n := range w.Containers {
		learn(h, n)
	}
	h.Containers = slices.DeleteFunc(h.Containers, func(c state.Container) bool {
		return !slices.ContainsFunc(w.Containers, func(n state.Container) bool { return n.ID == c.ID })
	})
	slices.SortFunc(h.Containers, func(a, b state.Container) int { return a.Attempt - b.Attempt })
}

// Adopt fills an empty Have by what is found at start: the runtime's world and the API's status. Verdicts about containers
// that still run are taken from the status, so that a restart of the kubelet makes no ready pod unready.
// had says that the node holds something of the pod beside containers: a directory or a cgroup.
func Adopt(h *state.Have, w state.World, had bool) {
	Merge(h, w)
	if had || h.Sandbox.ID != "" || len(h.Containers) > 0 {
		h.Volumes, h.Cgroup = state.Dirty, state.Dirty
	}
	h.Written = h.Status.Phase
	for i := range h.Containers {
		c := &h.Containers[i]
		if c.Phase != state.Running {
			continue
		}
		// Whether a postStart hook that was begun came to its end is unknown; it is not run a second time.
		if c.PostStart == state.HookBegun {
			c.PostStart = state.HookDone
		}
		s := find(&h.Status, c.Name)
		if s == nil || !strings.HasSuffix(s.ContainerID, "://"+c.ID) {
			continue
		}
		if s.Started != nil && *s.Started {
			c.Probe.Startup = state.Success
			c.PostStart = state.HookDone
		}
		if s.Ready {
			c.Probe.Readiness = state.Success
		}
	}
}

// Happened is news about a container from the runtime's event stream. It says whether anything changed.
func Happened(h *state.Have, id string, e state.Event) bool {
	if id == h.Sandbox.ID {
		if e == state.Died && h.Sandbox.Ready && !h.Busy("stop-sandbox/"+id) {
			h.Lost = true // verify: events may be late
			return true
		}
		return false
	}
	c := h.ByID(id)
	if c == nil {
		if e == state.Died && discovering(h) {
			h.Early = append(h.Early, id)
		}
		return false
	}
	if e == state.Removed {
		remove(h, id)
		return true
	}
	return move(c, e)
}

// discovering says whether a call is under way whose answer may tell of a container that is not known yet.
func discovering(h *state.Have) bool {
	return slices.ContainsFunc(h.Running, func(t state.Task) bool { return t.Key == Look{}.Key() || hasPrefix(t.Key, "start/") })
}

// Judged is news from the prober about an attempt. It says whether anything changed.
func Judged(h *state.Have, container, id string, kind Kind, v state.Verdict) bool {
	c := h.ByID(id)
	if c == nil || c.Name != container || c.Phase != state.Running {
		return false
	}
	at := &c.Probe.Readiness
	switch kind {
	case Startup:
		at = &c.Probe.Startup
	case Liveness:
		at = &c.Probe.Liveness
	}
	if *at == v {
		return false
	}
	*at = v
	return true
}

// Changed records that an API object changed which the pod uses: its files are stale, and what failed may work now.
func Changed(h *state.Have) {
	h.Changed = true
	for i := range h.Broken {
		if n := h.Broken[i].Name; n == "volumes" || n == "refresh" || hasPrefix(n, "start/") {
			h.Broken[i].Value.RetryAt = time.Time{}
		}
	}
}
