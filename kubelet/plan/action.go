package plan

import (
	"time"

	"worknode/kubelet/state"
)

// Action is one thing the kubelet can do to the world. This file lists them all. Every action may be repeated: after a
// crash it is planned again from what is found. Key names the action within its pod; of one key one runs at a time.
type Action interface{ Key() string }

// Kind of a probe or a hook, named as in the API.
type Kind string

const (
	Startup   Kind = "startup"
	Readiness Kind = "readiness"
	Liveness  Kind = "liveness"
	PostStart Kind = "postStart"
	PreStop   Kind = "preStop"
)

type (
	// RunSandbox makes the pod's cgroup and its sandbox.
	RunSandbox struct{ Attempt uint32 }
	// StopSandbox ends what runs in a sandbox and releases its network.
	StopSandbox struct{ ID string }
	// RemoveSandbox deletes a stopped sandbox, and its containers' records with it.
	// Logs says that the pod goes altogether and its logs with it.
	RemoveSandbox struct {
		ID   string
		Logs bool
	}

	// MountVolumes makes all volumes of the pod present and current.
	MountVolumes struct{}
	// RefreshVolumes brings files made from API objects up to date.
	RefreshVolumes struct{}
	// UnmountVolumes removes the pod's volumes and its directory.
	UnmountVolumes struct{}
	// RemoveCgroup kills what is left in the pod's cgroup and removes it.
	RemoveCgroup struct{}

	// EnsureImage finds a container's image in the runtime, or pulls it, as the pull policy says.
	EnsureImage struct {
		Container string
		Image     string // as the spec names it; a running pod may change it
	}

	// StartContainer creates an attempt and starts it; with an ID it starts one that exists.
	StartContainer struct {
		Container string
		ID        string
		Attempt   int
		Sandbox   state.Sandbox
		Backoff   time.Duration // stored with the container: what the next attempt must wait
		Image     state.Image
		Target    string // id of the container whose process namespace an ephemeral container enters; empty: none
	}
	// RunHook runs a lifecycle hook, once per attempt. For bounds it; zero is no bound.
	RunHook struct {
		Container string
		ID        string
		Hook      Kind
		For       time.Duration
		Again     bool // of a preStop hook: the container is stopped in order to start anew
	}
	// StopContainer sends the stop signal and, after Grace, SIGKILL.
	StopContainer struct {
		Container string
		ID        string
		Grace     time.Duration
		Again     bool // it is stopped in order to start anew
		Harder    int  // counts the calls that shortened the grace of an earlier one
	}
	// Inspect reads how a container ended.
	Inspect struct{ Container, ID string }
	// RemoveContainer deletes an ended attempt and its log.
	RemoveContainer struct {
		Container, ID string
		Attempt       int
	}

	// SetProbe starts a probe for an attempt.
	SetProbe struct {
		Container string
		ID        string
		Kind      Kind
		StartedAt time.Time
		Initial   state.Verdict
	}
	// DropProbe ends one probe of an attempt.
	DropProbe struct {
		Container string
		ID        string
		Kind      Kind
	}
	// DropProbes ends all probes of the pod.
	DropProbes struct{}

	// Look lists what the runtime has of this pod.
	Look struct{}
	// DeleteObject removes the pod from the API server, if it is still the same one.
	DeleteObject struct{}
)

func (a RunSandbox) Key() string      { return "sandbox" }
func (a StopSandbox) Key() string     { return "stop-sandbox/" + a.ID }
func (a RemoveSandbox) Key() string   { return "remove-sandbox/" + a.ID }
func (a MountVolumes) Key() string    { return "volumes" }
func (a RefreshVolumes) Key() string  { return "refresh" }
func (a UnmountVolumes) Key() string  { return "unmount" }
func (a RemoveCgroup) Key() string    { return "cgroup" }
func (a EnsureImage) Key() string     { return "image/" + a.Container }
func (a StartContainer) Key() string  { return "start/" + a.Container }
func (a RunHook) Key() string         { return "hook/" + string(a.Hook) + "/" + a.ID }
func (a Inspect) Key() string         { return "inspect/" + a.ID }
func (a RemoveContainer) Key() string { return "remove/" + a.ID }
func (a SetProbe) Key() string        { return "probe/" + string(a.Kind) + "/" + a.Container }
func (a DropProbe) Key() string       { return "drop/" + string(a.Kind) + "/" + a.Container }
func (a DropProbes) Key() string      { return "drop" }
func (a Look) Key() string            { return "look" }
func (a DeleteObject) Key() string    { return "delete" }

// Key of a stop: one that shortens the grace runs beside the one it overtakes.
func (a StopContainer) Key() string { return "stop/" + a.ID + "/" + string(rune('0'+a.Harder%10)) }

// Quick says that an action cannot block: it is done on the spot, in the order of the plan.
func Quick(a Action) bool {
	switch a.(type) {
	case SetProbe, DropProbe, DropProbes:
		return true
	}
	return false
}

// Say is an event for people, as the API keeps them.
type Say struct {
	Container string // empty: about the pod
	Warning   bool
	Reason    string
	Message   string
}
