// Package source tells the kubelet which pods it is to run: those that the API server binds to the node (api.go), and
// static pods, from a folder (file.go) and from a web address (http.go). It decides nothing about pods and keeps none.
package source

import (
	v1 "k8s.io/api/core/v1"
)

// Pods is who is told. The calls of one source come in order and must not block; sources do not wait for each other.
type Pods interface {
	// Put: the pod is new or changed. The receiver owns the object.
	Put(pod *v1.Pod)
	// Gone: the pod's object does not exist any more; perhaps only its name, namespace and UID are known.
	Gone(pod *v1.Pod)
	// Synced: every pod that existed when the source started was Put. Called once per source.
	Synced()
}
