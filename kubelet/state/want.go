package state

import (
	v1 "k8s.io/api/core/v1"
)

// Want is what the API server, or the node itself, asks of one pod.
type Want struct {
	// Pod is the newest accepted version of the object. It is shared and read-only. For an Orphan it holds only what
	// the runtime's labels tell: name, namespace, UID.
	Pod *v1.Pod
	// Runtime is the name of the container runtime, the scheme of container ids in the status.
	Runtime string
	// Gone says that the API object no longer exists: there is nobody to report to, everything is to be cleaned up.
	Gone bool
	// Orphan says that the runtime runs a pod that the API never mentioned. It is ended with a grace of one second.
	Orphan bool
	// Reject, if its Reason is set, says why the node refused the pod; its containers never start, its phase is Failed.
	Reject Cause
	// Kill, if its Reason is set, ends the pod on the node's own account (eviction, preemption): phase Failed.
	Kill Kill
}

// Cause is a reason in CamelCase and a sentence for people, as the API's status and events carry them.
type Cause struct{ Reason, Message string }

// Kill is a Cause with an own grace period in seconds; nil leaves the pod's.
type Kill struct {
	Cause
	Grace *int64
}
