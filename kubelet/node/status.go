package node

import (
	"encoding/json"
	"reflect"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const imagesMost = 50 // images named in the status, the largest; Source: KubeletConfiguration, nodeStatusMaxImages

// status is what the node says of itself at now.
func (n *Node) status(now time.Time) v1.NodeStatus {
	out := statusOf(n.Config, n.facts, n.runtime, n.pressure, n.images, n.said.Conditions, now)
	if n.runtime.Name == "" { // it has not answered since we began
		out.NodeInfo.ContainerRuntimeVersion = n.said.NodeInfo.ContainerRuntimeVersion
		out.RuntimeHandlers, out.Features, out.Images = n.said.RuntimeHandlers, n.said.Features, n.said.Images
	}
	return out
}

func statusOf(c Config, f Facts, rt Runtime, p pressure, images []v1.ContainerImage, before []v1.NodeCondition, now time.Time) v1.NodeStatus {
	out := v1.NodeStatus{
		Capacity:        capacity(c, f),
		Allocatable:     allocatable(c, f),
		DaemonEndpoints: v1.NodeDaemonEndpoints{KubeletEndpoint: v1.DaemonEndpoint{Port: c.KubeletPort}},
		NodeInfo: v1.NodeSystemInfo{
			MachineID: f.MachineID, SystemUUID: f.SystemUUID, BootID: f.BootID, KernelVersion: f.Kernel, OSImage: f.OSImage,
			ContainerRuntimeVersion: rt.Name + "://" + rt.Version,
			KubeletVersion:          c.Version, OperatingSystem: "linux", Architecture: f.Arch,
		},
		RuntimeHandlers: rt.Handlers,
		Features:        &v1.NodeFeatures{SupplementalGroupsPolicy: &rt.SupplementalGroups},
		Images:          largest(images, c.MaxImages),
	}
	if f.Swap > 0 { // the API refuses a capacity of nothing
		out.NodeInfo.Swap = &v1.NodeSwapStatus{Capacity: &f.Swap}
	}
	out.Addresses = Addresses(c.Hostname, c.IPs)
	out.Conditions = []v1.NodeCondition{
		condition(v1.NodeMemoryPressure, p.memory, "KubeletHasInsufficientMemory", "kubelet has insufficient memory available", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
		condition(v1.NodeDiskPressure, p.disk, "KubeletHasDiskPressure", "kubelet has disk pressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
		condition(v1.NodePIDPressure, p.pids, "KubeletHasInsufficientPID", "kubelet has insufficient PID available", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
		condition(v1.NodeReady, rt.Problem == "", "KubeletReady", "kubelet is posting ready status", "KubeletNotReady", rt.Problem),
	}
	for i := range out.Conditions {
		cond := &out.Conditions[i]
		cond.LastHeartbeatTime, cond.LastTransitionTime = metav1.NewTime(now), metav1.NewTime(now)
		if was := find(before, cond.Type); was != nil && was.Status == cond.Status {
			cond.LastTransitionTime = was.LastTransitionTime
		}
	}
	return out
}

// Addresses are those that a node tells of itself.
func Addresses(hostname string, ips []string) (out []v1.NodeAddress) {
	for _, ip := range ips {
		out = append(out, v1.NodeAddress{Type: v1.NodeInternalIP, Address: ip})
	}
	return append(out, v1.NodeAddress{Type: v1.NodeHostName, Address: hostname})
}

func condition(kind v1.NodeConditionType, on bool, yes, yesText, no, noText string) v1.NodeCondition {
	if on {
		return v1.NodeCondition{Type: kind, Status: v1.ConditionTrue, Reason: yes, Message: yesText}
	}
	return v1.NodeCondition{Type: kind, Status: v1.ConditionFalse, Reason: no, Message: noText}
}

// eventReason is the word that the field greps for.
func eventReason(c v1.NodeCondition) string {
	switch {
	case c.Type == v1.NodeReady && c.Status == v1.ConditionTrue:
		return "NodeReady"
	case c.Type == v1.NodeReady:
		return "NodeNotReady"
	default:
		return "Node" + c.Reason[len("Kubelet"):]
	}
}

func capacity(c Config, f Facts) v1.ResourceList {
	out := v1.ResourceList{
		v1.ResourceCPU:              *resource.NewQuantity(int64(f.CPUs), resource.DecimalSI),
		v1.ResourceMemory:           *resource.NewQuantity(f.Memory, resource.BinarySI),
		v1.ResourceEphemeralStorage: *resource.NewQuantity(f.Storage, resource.BinarySI),
		v1.ResourcePods:             *resource.NewQuantity(int64(c.MaxPods), resource.DecimalSI),
	}
	for size, bytes := range f.HugePages {
		out[v1.ResourceName(v1.ResourceHugePagesPrefix+size)] = *resource.NewQuantity(bytes, resource.BinarySI)
	}
	return out
}

// allocatable is the capacity without what is reserved, what the eviction thresholds keep, and, of memory, huge pages.
func allocatable(c Config, f Facts) v1.ResourceList {
	out := capacity(c, f)
	whole := map[v1.ResourceName]int64{v1.ResourceMemory: f.Memory, v1.ResourceEphemeralStorage: f.Storage}
	take := func(name v1.ResourceName, q resource.Quantity) {
		have := out[name]
		have.Sub(q)
		if have.Sign() < 0 {
			have = *resource.NewQuantity(0, have.Format)
		}
		out[name] = have
	}
	for name, q := range c.Reserved {
		if _, ok := out[name]; ok {
			take(name, q)
		}
	}
	for name, kept := range c.Kept {
		switch have := out[name]; {
		case kept.Amount != nil:
			take(name, *kept.Amount)
		default:
			take(name, *resource.NewQuantity(int64(float64(whole[name])*kept.Percent/100), have.Format))
		}
	}
	for _, bytes := range f.HugePages {
		take(v1.ResourceMemory, *resource.NewQuantity(bytes, resource.BinarySI))
	}
	return out
}

func largest(images []v1.ContainerImage, most int) []v1.ContainerImage {
	out := slices.Clone(images)
	slices.SortStableFunc(out, func(a, b v1.ContainerImage) int { return int(b.SizeBytes>>10) - int(a.SizeBytes>>10) })
	if most < 0 {
		return out
	}
	return out[:min(len(out), most)]
}

// sameStatus compares all but the heartbeats.
func sameStatus(a, b v1.NodeStatus) bool {
	for _, c := range a.Conditions {
		was := find(b.Conditions, c.Type)
		if was == nil || was.Status != c.Status || was.Reason != c.Reason || was.Message != c.Message {
			return false
		}
	}
	return sameResources(a.Capacity, b.Capacity) && sameResources(a.Allocatable, b.Allocatable) &&
		slices.Equal(a.Addresses, b.Addresses) && a.DaemonEndpoints == b.DaemonEndpoints &&
		sameInfo(a.NodeInfo, b.NodeInfo) && reflect.DeepEqual(a.RuntimeHandlers, b.RuntimeHandlers) &&
		reflect.DeepEqual(a.Features, b.Features) &&
		slices.EqualFunc(a.Images, b.Images, func(x, y v1.ContainerImage) bool {
			return x.SizeBytes == y.SizeBytes && slices.Equal(x.Names, y.Names)
		})
}

func sameInfo(a, b v1.NodeSystemInfo) bool {
	swapA, swapB := a.Swap, b.Swap
	a.Swap, b.Swap = nil, nil
	a.KubeProxyVersion, b.KubeProxyVersion = "", "" //nolint:staticcheck // deprecated, but a Node may still carry it
	return a == b && reflect.DeepEqual(swapA, swapB)
}

func sameResources(a, b v1.ResourceList) bool {
	if len(a) != len(b) {
		return false
	}
	for name, q := range a {
		if other, ok := b[name]; !ok || q.Cmp(other) != 0 {
			return false
		}
	}
	return true
}

// statusPatch is a strategic merge patch that sets our part of the status and leaves others' conditions alone.
// Addresses merge by type, of which several may be InternalIP, so their list is replaced as a whole; resources that
// are gone need a null.
func statusPatch(want, said v1.NodeStatus) ([]byte, error) {
	raw, err := json.Marshal(want)
	if err != nil {
		return nil, err
	}
	var status map[string]any
	if err := json.Unmarshal(raw, &status); err != nil {
		return nil, err
	}
	addresses, _ := status["addresses"].([]any)
	status["addresses"] = append([]any{map[string]string{"$patch": "replace"}}, addresses...)
	for field, lists := range map[string][2]v1.ResourceList{"capacity": {want.Capacity, said.Capacity}, "allocatable": {want.Allocatable, said.Allocatable}} {
		for name := range lists[1] {
			if _, still := lists[0][name]; !still {
				status[field].(map[string]any)[string(name)] = nil
			}
		}
	}
	for field, now := range map[string]int{"images": len(want.Images), "runtimeHandlers": len(want.RuntimeHandlers)} {
		if now == 0 {
			status[field] = nil
		}
	}
	return json.Marshal(map[string]any{"status": status})
}

func find(list []v1.NodeCondition, kind v1.NodeConditionType) *v1.NodeCondition {
	for i := range list {
		if list[i].Type == kind {
			return &list[i]
		}
	}
	return nil
}

func isTrue(list []v1.NodeCondition, kind v1.NodeConditionType) bool {
	c := find(list, kind)
	return c != nil && c.Status == v1.ConditionTrue
}

// notReady is the list without its Ready condition: what an earlier boot said no longer counts.
func notReady(list []v1.NodeCondition) []v1.NodeCondition {
	return slices.DeleteFunc(slices.Clone(list), func(c v1.NodeCondition) bool { return c.Type == v1.NodeReady })
}
