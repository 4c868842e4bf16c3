// Package source tells the kubelet which pods it is to run. Today's only source is the API server.
// It decides nothing about pods and keeps none.
package source

import (
	"context"

	v1 "k8s.io/api/core/v1"

	"worknode/kube"
)

// Pods is who is told. The calls come in order, from one goroutine, and must not block.
type Pods interface {
	// Put: the pod is new or changed. The receiver owns the object.
	Put(pod *v1.Pod)
	// Gone: the pod's object does not exist any more; perhaps only its name, namespace and UID are known.
	Gone(pod *v1.Pod)
	// Synced: every pod that existed when the source started was Put. Called once.
	Synced()
}

// API follows the pods that the API server has bound to the node until ctx ends.
func API(ctx context.Context, client *kube.Client, node string, pods Pods) {
	kube.Follow(ctx, client, kube.Pods, kube.Where{Field: "spec.nodeName=" + node}, func(d kube.Delta) {
		if d.Op == kube.Synced {
			pods.Synced()
			return
		}
		pod, ok := d.Object.(*v1.Pod)
		if !ok {
			return
		}
		pod.ManagedFields = nil // half of an object's memory, and of no use here
		if d.Op == kube.Delete {
			pods.Gone(pod)
			return
		}
		pods.Put(pod)
	})
}
