package source

import (
	"context"

	v1 "k8s.io/api/core/v1"

	"worknode/kube"
)

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
