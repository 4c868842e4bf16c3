// Package probe runs the startup, readiness and liveness probes of the node's containers.
//
// One heap of due times serves the whole node: a probe costs a heap entry at rest and a goroutine only while it runs.
// The package counts thresholds and says when a verdict changes; what a verdict means for the pod is the planner's business.
//
// Read first: prober.go (targets, the heap, Run), verdict.go (thresholds and times, pure), attempt.go (one run of a handler).
package probe

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Kind says which of a container's probes is meant.
type Kind int

const (
	Startup Kind = iota
	Readiness
	Liveness
)

// String is the word events begin with, capital included.
func (k Kind) String() string {
	switch k {
	case Startup:
		return "Startup"
	case Readiness:
		return "Readiness"
	default:
		return "Liveness"
	}
}

// Verdict is what the probe's thresholds conclude; it changes less often than single results do.
type Verdict int

const (
	Unknown Verdict = iota
	Success
	Failure
)

func (v Verdict) String() string {
	switch v {
	case Success:
		return "success"
	case Failure:
		return "failure"
	default:
		return "unknown"
	}
}

// Key names one probe of one container of one pod.
type Key struct {
	UID       types.UID
	Container string
	Kind      Kind
}

// Target is one probe to run. The Prober keeps the pointers and never writes through them.
type Target struct {
	Key
	ContainerID string
	PodIP       string
	Pod         *v1.Pod
	Container   *v1.Container
	Probe       *v1.Probe
	StartedAt   time.Time // when the container started; initialDelaySeconds counts from here
	// Initial is the verdict that the caller already knows, as after a restart of the kubelet.
	// Unknown means the kind's own beginning: readiness Failure, liveness Success, startup Unknown.
	Initial Verdict
}

// Result tells of a changed verdict.
type Result struct {
	Key
	ContainerID string
	Verdict     Verdict
	Output      string // what the last attempt said, at most 10 KiB
	Err         error  // why the attempt could not be made; nil when the handler answered
}

// Exec runs cmd in a container and returns its combined output and exit code. It kills cmd after timeout and
// then returns an error for which errors.Is(err, context.DeadlineExceeded) holds.
type Exec func(ctx context.Context, containerID string, cmd []string, timeout time.Duration) (out []byte, exit int, err error)
