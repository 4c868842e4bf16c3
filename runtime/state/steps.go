package state

import "worknode/fault"

// State is where a container stands.
type State string

const (
	Created State = "created"
	Running State = "running"
	Exited  State = "exited"
	Gone    State = "gone" // removed; never stored
)

// Event is what moves a container from one state to the next.
type Event string

const (
	Started Event = "started" // the monitor confirmed execve
	Failed  Event = "failed"  // the start ended without a process
	Died    Event = "died"    // the process ended, however it did
	Removed Event = "removed"
)

// Steps is the whole life of a container; a pair that is not here is refused.
var Steps = map[State]map[Event]State{
	// Created may die: we were killed between the monitor's start and our record of it.
	Created: {Started: Running, Failed: Exited, Died: Exited, Removed: Gone},
	Running: {Died: Exited},
	Exited:  {Removed: Gone},
}

// Step returns the state after event.
// Errors: Invalid for a pair that the table refuses, such as starting a container twice.
func (c *Container) Step(event Event) (State, error) {
	next, ok := Steps[c.State][event]
	if !ok {
		return c.State, fault.New(fault.Invalid, "container %s is %s and cannot have %s", c.ID, c.State, event)
	}
	return next, nil
}
