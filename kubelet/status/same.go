package status

import (
	"slices"

	v1 "k8s.io/api/core/v1"
)

// Same says whether two statuses tell the API server the same. It looks at what the kubelet writes and can change, and
// is cheap where reflection over a whole status is not: it runs at every plan of every pod.
func Same(a, b *v1.PodStatus) bool {
	return a.Phase == b.Phase && a.Reason == b.Reason && a.Message == b.Message &&
		a.ObservedGeneration == b.ObservedGeneration && a.HostIP == b.HostIP && a.PodIP == b.PodIP && a.QOSClass == b.QOSClass &&
		(a.StartTime == nil) == (b.StartTime == nil) && slices.Equal(a.PodIPs, b.PodIPs) && slices.Equal(a.HostIPs, b.HostIPs) &&
		slices.EqualFunc(a.Conditions, b.Conditions, sameCondition) &&
		slices.EqualFunc(a.InitContainerStatuses, b.InitContainerStatuses, sameContainer) &&
		slices.EqualFunc(a.ContainerStatuses, b.ContainerStatuses, sameContainer) &&
		slices.EqualFunc(a.EphemeralContainerStatuses, b.EphemeralContainerStatuses, sameContainer)
}

func sameCondition(a, b v1.PodCondition) bool {
	return a.Type == b.Type && a.Status == b.Status && a.Reason == b.Reason && a.Message == b.Message &&
		a.ObservedGeneration == b.ObservedGeneration
}

func sameContainer(a, b v1.ContainerStatus) bool {
	return a.Name == b.Name && a.Ready == b.Ready && a.RestartCount == b.RestartCount && a.ContainerID == b.ContainerID &&
		a.Image == b.Image && a.ImageID == b.ImageID && truth(a.Started) == truth(b.Started) &&
		sameState(&a.State, &b.State) && sameState(&a.LastTerminationState, &b.LastTerminationState) &&
		(a.User == nil) == (b.User == nil) && (a.Resources == nil) == (b.Resources == nil)
}

func truth(b *bool) int {
	switch {
	case b == nil:
		return -1
	case *b:
		return 1
	}
	return 0
}

func sameState(a, b *v1.ContainerState) bool {
	switch {
	case (a.Waiting == nil) != (b.Waiting == nil), (a.Running == nil) != (b.Running == nil), (a.Terminated == nil) != (b.Terminated == nil):
		return false
	case a.Waiting != nil && *a.Waiting != *b.Waiting:
		return false
	case a.Running != nil && !a.Running.StartedAt.Equal(&b.Running.StartedAt):
		return false
	case a.Terminated != nil && a.Terminated != b.Terminated:
		x, y := a.Terminated, b.Terminated
		return x.ExitCode == y.ExitCode && x.Signal == y.Signal && x.Reason == y.Reason && x.Message == y.Message &&
			x.ContainerID == y.ContainerID && x.StartedAt.Equal(&y.StartedAt) && x.FinishedAt.Equal(&y.FinishedAt)
	}
	return true
}
