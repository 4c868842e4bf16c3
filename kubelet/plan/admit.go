package plan

import (
	"fmt"

	v1 "k8s.io/api/core/v1"

	"worknode/kubelet/state"
)

// Load is what pods ask of the node, or what the node has for them.
type Load struct {
	Pods     int64
	MilliCPU int64
	Memory   int64 // bytes
}

// Add returns the sum of two loads.
func (l Load) Add(o Load) Load {
	return Load{l.Pods + o.Pods, l.MilliCPU + o.MilliCPU, l.Memory + o.Memory}
}

// Request is the load of one pod: the sum of its containers, or its most demanding init step if that is more, and its
// overhead. Sidecars count for every step after their start. Source: KEP-753, resource calculation.
func Request(pod *v1.Pod) Load {
	one := func(r v1.ResourceList) Load {
		return Load{MilliCPU: r.Cpu().MilliValue(), Memory: r.Memory().Value()}
	}
	var sum, sidecars, most Load
	for i := range pod.Spec.Containers {
		sum = sum.Add(one(pod.Spec.Containers[i].Resources.Requests))
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		step := one(c.Resources.Requests).Add(sidecars)
		if Sidecar(c) {
			sidecars = step
		}
		most = Load{0, max(most.MilliCPU, step.MilliCPU), max(most.Memory, step.Memory)}
	}
	sum = sum.Add(sidecars)
	sum = Load{1, max(sum.MilliCPU, most.MilliCPU), max(sum.Memory, most.Memory)}
	if pod.Spec.Resources != nil && pod.Spec.Resources.Requests != nil {
		r := pod.Spec.Resources.Requests
		if _, ok := r[v1.ResourceCPU]; ok {
			sum.MilliCPU = r.Cpu().MilliValue()
		}
		if _, ok := r[v1.ResourceMemory]; ok {
			sum.Memory = r.Memory().Value()
		}
	}
	return sum.Add(one(pod.Spec.Overhead))
}

// Admit decides whether the node takes a pod that never ran here. used is what the admitted pods ask for.
// A zero in capacity means that the node does not bound it. The reasons and words are upstream's.
func Admit(pod *v1.Pod, node string, used, capacity Load) state.Cause {
	if pod.Spec.NodeName != "" && pod.Spec.NodeName != node {
		return state.Cause{Reason: "NodeName", Message: "Predicate NodeName failed"}
	}
	if os := pod.Spec.OS; os != nil && os.Name != v1.Linux {
		return state.Cause{Reason: "PodOSNotSupported", Message: "Failed to admit pod as the OS field doesn't match node OS"}
	}
	want := Request(pod)
	for _, r := range []struct {
		name                 string
		asked, used, present int64
	}{
		{"pods", 1, used.Pods, capacity.Pods},
		{"cpu", want.MilliCPU, used.MilliCPU, capacity.MilliCPU},
		{"memory", want.Memory, used.Memory, capacity.Memory},
	} {
		if r.present > 0 && r.asked > 0 && r.used+r.asked > r.present {
			return state.Cause{Reason: "OutOf" + r.name, Message: fmt.Sprintf(
				"Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", r.name, r.asked, r.used, r.present)}
		}
	}
	return state.Cause{}
}
