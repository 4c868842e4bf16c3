// Package defaults fills in what a Kubernetes API server fills in where an object leaves a field open. It is pure: the
// local API uses it for every object, the kubelet for static pods.
// Source: the API reference of each field ("Defaults to …"), v1.37.
package defaults

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// set gives *p the value unless it has one.
func set[T any](p **T, value T) {
	if *p == nil {
		*p = &value
	}
}

// fill gives *p the value unless it is the zero value.
func fill[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}

// Pod fills in the fields that pod leaves open.
func Pod(pod *corev1.Pod) {
	spec := &pod.Spec
	PodSpec(spec)
	set(&spec.EnableServiceLinks, true)
	if spec.HostNetwork {
		hostPorts(spec.Containers)
		hostPorts(spec.InitContainers)
	}
}

// PodSpec fills in what pods and pod templates have in common.
func PodSpec(spec *corev1.PodSpec) {
	fill(&spec.DNSPolicy, corev1.DNSClusterFirst)
	fill(&spec.RestartPolicy, corev1.RestartPolicyAlways)
	fill(&spec.SchedulerName, corev1.DefaultSchedulerName)
	set(&spec.TerminationGracePeriodSeconds, int64(corev1.DefaultTerminationGracePeriodSeconds))
	set(&spec.SecurityContext, corev1.PodSecurityContext{})
	// The two names of one field follow each other.
	fill(&spec.ServiceAccountName, spec.DeprecatedServiceAccount)
	spec.DeprecatedServiceAccount = spec.ServiceAccountName
	for i := range spec.InitContainers {
		container(&spec.InitContainers[i])
	}
	for i := range spec.Containers {
		container(&spec.Containers[i])
	}
	for i := range spec.EphemeralContainers {
		c := corev1.Container(spec.EphemeralContainers[i].EphemeralContainerCommon)
		container(&c)
		spec.EphemeralContainers[i].EphemeralContainerCommon = corev1.EphemeralContainerCommon(c)
	}
	for i := range spec.Volumes {
		volume(&spec.Volumes[i].VolumeSource)
	}
	for i := range spec.TopologySpreadConstraints {
		set(&spec.TopologySpreadConstraints[i].NodeAffinityPolicy, corev1.NodeInclusionPolicyHonor)
		set(&spec.TopologySpreadConstraints[i].NodeTaintsPolicy, corev1.NodeInclusionPolicyIgnore)
	}
	podResources(spec)
}

// podResources: pod-level requests follow pod-level limits, as a container's do.
func podResources(spec *corev1.PodSpec) {
	if spec.Resources == nil {
		return
	}
	requestsFromLimits(spec.Resources)
}

func requestsFromLimits(r *corev1.ResourceRequirements) {
	for name, limit := range r.Limits {
		if _, given := r.Requests[name]; given {
			continue
		}
		if r.Requests == nil {
			r.Requests = corev1.ResourceList{}
		}
		r.Requests[name] = limit.DeepCopy()
	}
	roundUp(r.Limits)
	roundUp(r.Requests)
}

// roundUp: the API keeps no quantity finer than a thousandth.
func roundUp(list corev1.ResourceList) {
	for name, q := range list {
		q.RoundUp(resource.Milli)
		list[name] = q
	}
}

func hostPorts(containers []corev1.Container) {
	for i := range containers {
		for j := range containers[i].Ports {
			fill(&containers[i].Ports[j].HostPort, containers[i].Ports[j].ContainerPort)
		}
	}
}

func container(c *corev1.Container) {
	fill(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	fill(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	fill(&c.ImagePullPolicy, PullPolicy(c.Image))
	for i := range c.Ports {
		fill(&c.Ports[i].Protocol, corev1.ProtocolTCP)
	}
	for i := range c.Env {
		from := c.Env[i].ValueFrom
		if from == nil {
			continue
		}
		if from.FieldRef != nil {
			fill(&from.FieldRef.APIVersion, "v1")
		}
		if from.FileKeyRef != nil {
			set(&from.FileKeyRef.Optional, false)
		}
	}
	requestsFromLimits(&c.Resources)
	if s := c.SecurityContext; s != nil {
		// Upstream writes procMount only where a security context exists.
		set(&s.ProcMount, corev1.DefaultProcMount)
	}
	for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		probe(p)
	}
	if c.Lifecycle != nil {
		for _, h := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
			if h != nil {
				httpGet(h.HTTPGet)
			}
		}
	}
}

// PullPolicy is the policy of a container that names none: Always for the tag "latest" and for no tag at all.
func PullPolicy(image string) corev1.PullPolicy {
	if strings.Contains(image, "@") {
		return corev1.PullIfNotPresent
	}
	last := image[strings.LastIndex(image, "/")+1:]
	if _, tag, tagged := strings.Cut(last, ":"); tagged && tag != "latest" {
		return corev1.PullIfNotPresent
	}
	return corev1.PullAlways
}

func probe(p *corev1.Probe) {
	if p == nil {
		return
	}
	fill(&p.TimeoutSeconds, 1)
	fill(&p.PeriodSeconds, 10)
	fill(&p.SuccessThreshold, 1)
	fill(&p.FailureThreshold, 3)
	httpGet(p.HTTPGet)
	if p.GRPC != nil {
		set(&p.GRPC.Service, "")
	}
}

func httpGet(h *corev1.HTTPGetAction) {
	if h == nil {
		return
	}
	fill(&h.Path, "/")
	fill(&h.Scheme, corev1.URISchemeHTTP)
	if h.Port.Type == intstr.String && h.Port.StrVal == "" {
		h.Port.Type = intstr.Int
	}
}
