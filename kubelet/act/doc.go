// Package act carries out what plan decided: it turns actions into calls of the container runtime, of the volumes, of the
// cgroups and of a pod's hooks, and it reads the world (look.go). It decides nothing, and every action may be repeated.
//
// Whatever outlives the kubelet is named before it is made, so that looking finds it: sandboxes and containers carry the
// pod's UID in their labels, hooks leave a mark before they run (did.go).
package act

import (
	"context"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/kubelet/cgroups"
	"worknode/kubelet/object"
	"worknode/kubelet/plan"
	"worknode/kubelet/translate"
	"worknode/kubelet/volume"
)

// Act holds the doors. Its fields are set before use and not changed after; its methods may run at the same time.
type Act struct {
	Runtime cri.RuntimeServiceClient
	Images  cri.ImageServiceClient
	Volumes *volume.Volumes
	Cgroups *cgroups.Pods
	Objects *object.Cache
	Node    func() translate.Node
	Root    string // the kubelet's own directory

	// Say sends an event about a pod; it must not block.
	Say func(pod *v1.Pod, say plan.Say)
	// Static says that the pod is not the API server's, so that it must start without one; nil: none is.
	Static func(pod *v1.Pod) bool
	// Delete removes the pod's API object if it is still the same one.
	Delete func(ctx context.Context, pod *v1.Pod) error
	// Links is the directory where log collectors find the containers' logs; empty: none.
	Links string
}

// Do carries out one action and reports what came of it. ctx bounds it as a whole; calls have deadlines of their own.
func (a *Act) Do(ctx context.Context, pod *v1.Pod, action plan.Action) plan.Result {
	switch t := action.(type) {
	case plan.RunSandbox:
		return a.runSandbox(ctx, pod, t)
	case plan.StopSandbox:
		return a.stopSandbox(ctx, t)
	case plan.RemoveSandbox:
		return a.removeSandbox(ctx, pod, t)
	case plan.MountVolumes:
		return wrong(a.Volumes.Mount(ctx, pod), "FailedMount")
	case plan.RefreshVolumes:
		return wrong(a.Volumes.Refresh(ctx, pod), "FailedMount")
	case plan.UnmountVolumes:
		if err := a.Volumes.Unmount(ctx, pod.UID); err != nil {
			return wrong(err, "FailedUnmount")
		}
		return wrong(a.forgetDid(pod.UID), "FailedUnmount")
	case plan.RemoveCgroup:
		return wrong(a.Cgroups.Remove(pod.UID), "FailedKillPod")
	case plan.EnsureImage:
		return a.ensureImage(ctx, pod, t)
	case plan.StartContainer:
		return a.startContainer(ctx, pod, t)
	case plan.RunHook:
		return a.runHook(ctx, pod, t)
	case plan.StopContainer:
		return a.stopContainer(ctx, t)
	case plan.Inspect:
		return a.inspect(ctx, t.ID)
	case plan.RemoveContainer:
		return a.removeContainer(ctx, pod, t)
	case plan.Look:
		return a.look(ctx, pod.UID)
	case plan.DeleteObject:
		return wrong(a.Delete(ctx, pod), "FailedDelete")
	}
	panic("action without an executor: " + action.Key())
}
