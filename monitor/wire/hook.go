package wire

import "time"

// Hooks are programs to run at points of a container's life, in the order listed, each with the container's State on
// stdin. The monitor runs those of the host (prestart, createRuntime, poststart), init those of the container. A hook that
// fails ends the start; the container is gone then. Poststop hooks are the caller's, who alone knows when the container
// has been taken down (package hook runs them).
// Source: OCI runtime spec 1.3, config.md "POSIX-platform Hooks" and runtime.md "Lifecycle".
type Hooks struct {
	State           State
	Prestart        []Hook `json:",omitempty"` // on the host, when namespaces and mounts are made, before pivot_root
	CreateRuntime   []Hook `json:",omitempty"` // the same, later
	CreateContainer []Hook `json:",omitempty"` // in the container's namespaces, program and root still seen from the host; working directory: the new root
	StartContainer  []Hook `json:",omitempty"` // inside the container, as its user, before its program
	Poststart       []Hook `json:",omitempty"` // on the host, once the program runs; a failure kills it
}

// Hook is one program.
type Hook struct {
	Path    string        // absolute
	Args    []string      `json:",omitempty"` // with the program's name; empty: Path alone
	Env     []string      `json:",omitempty"` // all of its environment
	Timeout time.Duration `json:",omitempty"` // after which it is killed and has failed; zero: HookLimit
}

// HookLimit bounds a hook that names no time-out: a start must end.
const HookLimit = 2 * time.Minute

// State is what a hook reads on stdin. Whoever runs the hook fills Status and Pid in: the first process as the reader
// sees it, so inside the container it is the number there. Source: OCI runtime.md "State".
type State struct {
	Version     string            `json:"ociVersion"`
	ID          string            `json:"id"`
	Status      string            `json:"status"` // creating, created, running, stopped
	Pid         int               `json:"pid,omitempty"`
	Bundle      string            `json:"bundle"` // absolute; the working directory of hooks on the host
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Limit is the longest time that hooks of these lists may take together.
func Limit(lists ...[]Hook) time.Duration {
	var sum time.Duration
	for _, list := range lists {
		for _, h := range list {
			sum += h.Limit()
		}
	}
	return sum
}

// Limit is the longest time that this hook may take.
func (h Hook) Limit() time.Duration {
	if h.Timeout > 0 {
		return h.Timeout
	}
	return HookLimit
}

// Limit is the longest time that all hooks of a start may take; of a nil h none.
func (h *Hooks) Limit() time.Duration {
	if h == nil {
		return 0
	}
	return Limit(h.Prestart, h.CreateRuntime, h.CreateContainer, h.StartContainer, h.Poststart)
}
