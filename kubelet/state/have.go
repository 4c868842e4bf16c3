package state

import (
	"time"

	v1 "k8s.io/api/core/v1"

	"worknode/fault"
)

// Stage is how far a thing that exists once per pod has come.
type Stage int

const (
	None    Stage = iota // never made, or gone again
	Present              // made and complete
	Dirty                // made, but no longer what is wanted, or perhaps half made
)

// Sandbox is the runtime's pod sandbox.
type Sandbox struct {
	ID        string // empty: there is none
	Attempt   uint32
	Ready     bool
	IPs       []string // none for host network pods
	CreatedAt time.Time
}

// Image is an image as the runtime resolved it for one container.
type Image struct {
	Name string // as the spec names it
	ID   string // what to create containers from
	Ref  string // what the status shows: a digest if there is one
	User string // a user name from the image, empty if UID counts
	UID  *int64
}

// Broken is an action that did not succeed, kept until it does.
type Broken struct {
	Count   int
	At      time.Time
	RetryAt time.Time
	Kind    fault.Kind
	Of      string // the image, if that is what could not be had: another one has not failed
	Cause
}

// Task is an action that is under way.
type Task struct {
	Key   string
	Since time.Time
}

// End is the pod's termination; zero while the pod is to live.
type End struct {
	Since time.Time     // when it began; zero: it has not
	Grace time.Duration // from Since until the kill; may shrink, never grow
	Asked time.Duration // the shortest grace asked for so far, each counted from when it was asked
	Cause               // for the status of a pod that the node ended; empty when the API deleted it
}

// Begun says whether the pod is being terminated.
func (e End) Begun() bool { return !e.Since.IsZero() }

// Deadline is when the last process is killed.
func (e End) Deadline() time.Time { return e.Since.Add(e.Grace) }

// Have is everything known about one pod's presence on this node.
type Have struct {
	Sandbox    Sandbox
	Stale      []Sandbox // older sandboxes, to be stopped and removed
	Stopped    bool      // StopPodSandbox succeeded for Sandbox
	Containers []Container
	// Early are containers that ended before anything told of them: events overtake the answers to calls. It is kept
	// while a call is under way that may name them.
	Early []string

	Images  []Named[Image]  // by container name
	Broken  []Named[Broken] // by action key
	Running []Task
	Said    []Named[string] // by topic, which event was sent last, so that a plan repeats none

	Volumes Stage
	Changed bool // a ConfigMap, Secret or the pod's own metadata changed since the volumes were written
	Cgroup  Stage
	Probed  bool // the prober has targets of this pod

	End End
	// Lost: a call to the runtime ended without an answer, so nobody knows what it did. Look before acting again.
	// It is cleared when a look begins, so that what is lost during one is looked for by the next.
	Lost bool
	// Deleted: the API object was removed at our request.
	Deleted bool

	// Status is what was last computed; after a restart, what the API server has. It is the memory of transition
	// times, restart counts and of verdicts about containers that the runtime still runs.
	Status v1.PodStatus
	// Written is the newest status that the API server has confirmed, by its phase.
	Written v1.PodPhase
}

// Named is a value with a name: pods have few of anything, so a slice beats a map in memory and in speed.
type Named[T any] struct {
	Name  string
	Value T
}

// Find returns the value called name, nil if there is none.
func Find[T any](list []Named[T], name string) *T {
	for i := range list {
		if list[i].Name == name {
			return &list[i].Value
		}
	}
	return nil
}

// Put sets the value called name.
func Put[T any](list []Named[T], name string, v T) []Named[T] {
	if old := Find(list, name); old != nil {
		*old = v
		return list
	}
	return append(list, Named[T]{name, v})
}

// Drop removes the value called name.
func Drop[T any](list []Named[T], name string) []Named[T] {
	for i := range list {
		if list[i].Name == name {
			return append(list[:i], list[i+1:]...)
		}
	}
	return list
}

// Blind says that what the runtime has is not known: something got lost, or the look for it is under way.
func (h *Have) Blind() bool { return h.Lost || h.Busy("look") }

// Busy says whether the action called key is under way.
func (h *Have) Busy(key string) bool {
	for i := range h.Running {
		if h.Running[i].Key == key {
			return true
		}
	}
	return false
}

// Newest returns the latest attempt of a container, nil if there was none.
func (h *Have) Newest(name string) *Container {
	var newest *Container
	for i := range h.Containers {
		c := &h.Containers[i]
		if c.Name == name && (newest == nil || c.Attempt > newest.Attempt) {
			newest = c
		}
	}
	return newest
}

// Previous returns the latest attempt of a container before the given one, nil if there is none.
func (h *Have) Previous(name string, attempt int) *Container {
	var best *Container
	for i := range h.Containers {
		c := &h.Containers[i]
		if c.Name == name && c.Attempt < attempt && (best == nil || c.Attempt > best.Attempt) {
			best = c
		}
	}
	return best
}

// ByID returns the attempt with the runtime's id, nil if there is none.
func (h *Have) ByID(id string) *Container {
	for i := range h.Containers {
		if h.Containers[i].ID == id {
			return &h.Containers[i]
		}
	}
	return nil
}

// Alive says whether any container of the pod has, or may yet get, a process.
func (h *Have) Alive() bool {
	for i := range h.Containers {
		if h.Containers[i].Alive() {
			return true
		}
	}
	return false
}

// World is what looking at the node tells about one pod.
type World struct {
	Sandboxes  []Sandbox
	Containers []Container
}
