package translate

import (
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	podresource "k8s.io/component-helpers/resource"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	minShares      = 2 // what the kernel takes at least and at most as cpu.shares
	maxShares      = 262144
	minQuotaUs     = 1000 // the kernel refuses a CFS quota below one millisecond
	defaultPeriod  = 100_000
	keepPodsOOM    = -997 // below every ordinary pod, above the node's own processes (-999)
	bestEffortOOM  = 1000
	burstableFloor = 3
)

// request is a container's request; one that is not set equals the limit, as the API server defaults it.
func request(c *v1.Container, name v1.ResourceName) resource.Quantity {
	if q, ok := c.Resources.Requests[name]; ok {
		return q
	}
	return c.Resources.Limits[name]
}

// QoS returns the pod's quality of service class, computed from its resources.
// Source: Kubernetes docs, Pod Quality of Service Classes; pod-level resources win over the containers'.
func QoS(pod *v1.Pod) v1.PodQOSClass {
	if r := pod.Spec.Resources; r != nil && (len(r.Requests) > 0 || len(r.Limits) > 0) {
		whole := v1.Container{Resources: *r}
		return qosOf([]*v1.Container{&whole})
	}
	all := make([]*v1.Container, 0, len(pod.Spec.Containers)+len(pod.Spec.InitContainers))
	for i := range pod.Spec.Containers {
		all = append(all, &pod.Spec.Containers[i])
	}
	for i := range pod.Spec.InitContainers {
		all = append(all, &pod.Spec.InitContainers[i])
	}
	return qosOf(all)
}

func qosOf(all []*v1.Container) v1.PodQOSClass {
	class, guaranteed := v1.PodQOSBestEffort, true
	for _, c := range all {
		for _, name := range [...]v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} {
			req, limit := request(c, name), c.Resources.Limits[name]
			if req.Sign() > 0 || limit.Sign() > 0 {
				class = v1.PodQOSBurstable
			}
			if limit.Sign() <= 0 || req.Cmp(limit) != 0 {
				guaranteed = false
			}
		}
	}
	if guaranteed && class == v1.PodQOSBurstable {
		return v1.PodQOSGuaranteed
	}
	return class
}

// OOMScoreAdj returns a container's oom_score_adj: the less of the node's memory it asked for, the sooner it dies.
// memoryCapacity is the node's, in bytes. A sidecar never dies before the pod's main containers.
// Source: Kubernetes docs, node-pressure eviction, out of memory behavior.
func OOMScoreAdj(pod *v1.Pod, c *v1.Container, memoryCapacity int64) int64 {
	if pod.Spec.PriorityClassName == "system-node-critical" {
		return keepPodsOOM
	}
	switch QoS(pod) {
	case v1.PodQOSGuaranteed:
		return keepPodsOOM
	case v1.PodQOSBestEffort:
		return bestEffortOOM
	}
	adj := burstableOOM(c, memoryCapacity)
	if isSidecar(pod, c.Name) {
		for i := range pod.Spec.Containers {
			adj = min(adj, burstableOOM(&pod.Spec.Containers[i], memoryCapacity))
		}
	}
	return adj
}

func burstableOOM(c *v1.Container, capacity int64) int64 {
	adj := int64(bestEffortOOM)
	if capacity > 0 {
		asked := request(c, v1.ResourceMemory)
		adj -= int64(1000 * float64(asked.Value()) / float64(capacity))
	}
	return min(max(adj, burstableFloor), bestEffortOOM-1)
}

func isSidecar(pod *v1.Pod, name string) bool {
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.Name == name {
			return c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
		}
	}
	return false
}

// Shares converts a CPU request in thousandths of a CPU to cgroup v1 cpu.shares, the unit of CRI on v2 too.
func Shares(milliCPU int64) int64 {
	return min(max(milliCPU*1024/1000, minShares), maxShares)
}

// Quota converts a CPU limit in thousandths of a CPU to a CFS quota in microseconds per period; zero means none.
func Quota(milliCPU, periodUs int64) int64 {
	if milliCPU <= 0 {
		return 0
	}
	return max(milliCPU*Period(periodUs)/1000, minQuotaUs)
}

// Period is the CFS period in microseconds: the node's setting, or the usual 100 ms if it has none.
func Period(us int64) int64 {
	if us <= 0 {
		return defaultPeriod
	}
	return us
}

func containerResources(pod *v1.Pod, c *v1.Container, node Node) *cri.LinuxContainerResources {
	memory := node.Capacity[v1.ResourceMemory]
	r := limits(request(c, v1.ResourceCPU), c.Resources.Limits, node)
	r.OomScoreAdj = OOMScoreAdj(pod, c, memory.Value())
	if node.CgroupV2 {
		// A container is one thing to its user: if the kernel must kill, all of it goes and the exit is seen.
		r.Unified = map[string]string{"memory.oom.group": "1"}
		// memory and swap together bounded by the memory limit: no swap, the default of the API.
		r.MemorySwapLimitInBytes = r.MemoryLimitInBytes
	}
	for name, q := range c.Resources.Limits {
		size, ok := strings.CutPrefix(string(name), v1.ResourceHugePagesPrefix)
		if !ok {
			continue
		}
		if page, err := resource.ParseQuantity(size); err == nil {
			r.HugepageLimits = append(r.HugepageLimits, &cri.HugepageLimit{PageSize: hugePage(page.Value()), Limit: uint64(q.Value())})
		}
	}
	return r
}

func limits(cpu resource.Quantity, bounds v1.ResourceList, node Node) *cri.LinuxContainerResources {
	r := &cri.LinuxContainerResources{CpuShares: Shares(cpu.MilliValue()), CpuPeriod: Period(node.CPUQuotaPeriodUs)}
	limit := bounds[v1.ResourceCPU]
	if !node.NoCPUQuota {
		r.CpuQuota = Quota(limit.MilliValue(), r.CpuPeriod)
	}
	memory := bounds[v1.ResourceMemory]
	r.MemoryLimitInBytes = memory.Value()
	return r
}

// hugePage writes a page size as the hugetlb cgroup names it: 2MB, 1GB.
func hugePage(bytes int64) string {
	for _, u := range []struct {
		name string
		size int64
	}{{"GB", 1 << 30}, {"MB", 1 << 20}, {"KB", 1 << 10}} {
		if bytes >= u.size {
			return itoa(bytes/u.size) + u.name
		}
	}
	return itoa(bytes) + "B"
}

// PodResources is what a pod's cgroup is bounded by. Zero means: no bound.
type PodResources struct {
	MilliCPU        int64 // requested, in thousandths of a CPU
	Shares          int64
	QuotaUs, Period int64
	Memory          int64 // bytes
}

// ForPod sums a pod's containers, its overhead included. A bound exists only where every container has one: a limit
// on the pod would otherwise bind the container that has none.
func ForPod(pod *v1.Pod, node Node) PodResources {
	opts := podresource.PodResourcesOptions{}
	need := podresource.PodRequests(pod, opts)
	most := podresource.PodLimits(pod, opts)
	out := PodResources{Period: Period(node.CPUQuotaPeriodUs), Shares: minShares}
	class := QoS(pod)
	if class == v1.PodQOSBestEffort {
		return out
	}
	cpu := need[v1.ResourceCPU]
	if class == v1.PodQOSGuaranteed && cpu.IsZero() {
		cpu = most[v1.ResourceCPU]
	}
	out.MilliCPU = cpu.MilliValue()
	out.Shares = Shares(out.MilliCPU)
	if everyoneLimits(pod, v1.ResourceCPU) && !node.NoCPUQuota {
		q := most[v1.ResourceCPU]
		out.QuotaUs = Quota(q.MilliValue(), out.Period)
	}
	if everyoneLimits(pod, v1.ResourceMemory) {
		q := most[v1.ResourceMemory]
		out.Memory = q.Value()
	}
	return out
}

func everyoneLimits(pod *v1.Pod, name v1.ResourceName) bool {
	if r := pod.Spec.Resources; r != nil {
		if q, ok := r.Limits[name]; ok {
			return q.Sign() > 0
		}
	}
	for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if q := list[i].Resources.Limits[name]; q.Sign() <= 0 {
				return false
			}
		}
	}
	return true
}

// sandboxResources tell the runtime the sum of a pod's containers and, apart, its overhead.
func sandboxResources(pod *v1.Pod, node Node) (sum, overhead *cri.LinuxContainerResources) {
	opts := podresource.PodResourcesOptions{ExcludeOverhead: true}
	need, most := podresource.PodRequests(pod, opts), podresource.PodLimits(pod, opts)
	sum = limits(need[v1.ResourceCPU], v1.ResourceList{}, node)
	if everyoneLimits(pod, v1.ResourceCPU) && !node.NoCPUQuota {
		q := most[v1.ResourceCPU]
		sum.CpuQuota = Quota(q.MilliValue(), sum.CpuPeriod)
	}
	if everyoneLimits(pod, v1.ResourceMemory) {
		q := most[v1.ResourceMemory]
		sum.MemoryLimitInBytes = q.Value()
	}
	if len(pod.Spec.Overhead) > 0 {
		overhead = limits(pod.Spec.Overhead[v1.ResourceCPU], pod.Spec.Overhead, node)
	}
	return sum, overhead
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
