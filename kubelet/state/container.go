package state

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
)

// Phase is where a container attempt is in its life. It only moves forward (see steps).
type Phase int

const (
	Created Phase = iota // the runtime has a record, no process ever ran
	Running              // the process was started and has not been seen to end
	Exited               // the process ended, or the start itself was refused
	Gone                 // the runtime has no record any more
)

func (p Phase) String() string { return [...]string{"created", "running", "exited", "gone"}[p] }

// Event is what can happen to a container attempt.
type Event int

const (
	Started Event = iota // the runtime started the process
	Died                 // the process ended
	Refused              // the start failed for good: the attempt is used up
	Removed              // the runtime deleted the record
)

func (e Event) String() string { return [...]string{"started", "died", "refused", "removed"}[e] }

// steps is the whole life of an attempt. A pair that is missing is old news (a late or repeated event) and changes
// nothing: events and look-ups may overtake each other, and the later state is the true one.
var steps = map[Phase]map[Event]Phase{
	Created: {Started: Running, Died: Exited, Refused: Exited, Removed: Gone},
	Running: {Died: Exited, Removed: Gone},
	Exited:  {Removed: Gone},
	Gone:    {},
}

// After returns the phase that follows p, and whether e changes anything.
func (p Phase) After(e Event) (Phase, bool) {
	next, ok := steps[p][e]
	if !ok {
		return p, false
	}
	return next, true
}

// Hook is how far a lifecycle hook came. A hook is begun at most once per attempt, also across kubelet restarts.
type Hook int

const (
	HookNone Hook = iota
	HookBegun
	HookDone
	HookFailed
)

// Verdict is what a probe says about the running attempt.
type Verdict int

const (
	Unknown Verdict = iota
	Success
	Failure
)

// Container is one attempt of one container: what the runtime's record says, and what we did with it.
type Container struct {
	Name    string
	ID      string // the runtime's
	Sandbox string // the sandbox it was made in
	Attempt int    // counts restarts: the first is 0
	Phase   Phase

	// Backoff is how long the next attempt must wait after this one ended; zero for none. It is stored with the
	// container in the runtime, so a restarted kubelet goes on where it was.
	Backoff time.Duration

	Image    string // as the spec named it; empty if another kubelet made the container
	ImageRef string // as the runtime resolved it

	CreatedAt, StartedAt, FinishedAt time.Time

	// Known says that the fields below are read. An event tells that a container ended, not how.
	Known    bool
	ExitCode int32
	Reason   string
	Message  string
	LogPath  string
	User     *v1.ContainerUser

	PostStart, PreStop Hook
	Probe              Probe

	// StopBy is when the running StopContainer call will kill; zero if none was made.
	StopBy time.Time
	// StopSince is when we decided to stop it; zero if we did not.
	StopSince time.Time
	// Again says that it was stopped in order to run anew, whatever its exit code says.
	Again bool
}

// Probe is what the prober was asked to do for an attempt and what it found.
type Probe struct {
	Startup, Readiness, Liveness    Verdict
	StartupOn, ReadinessOn, AliveOn bool
}

// Alive says whether the attempt has, or may yet get, a process.
func (c *Container) Alive() bool { return c.Phase == Created || c.Phase == Running }

func (c *Container) String() string {
	if c.Phase == Exited {
		return fmt.Sprintf("%s#%d=exited(%d)", c.Name, c.Attempt, c.ExitCode)
	}
	return fmt.Sprintf("%s#%d=%s", c.Name, c.Attempt, c.Phase)
}
