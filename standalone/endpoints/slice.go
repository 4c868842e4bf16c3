package endpoints

import (
	"cmp"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// most is how many endpoints one slice holds; the API allows a thousand.
const most = 1000

// wanted is the content of one slice.
type wanted struct {
	ports     []discoveryv1.EndpointPort
	endpoints []discoveryv1.Endpoint
}

// compute says what the slices of svc must hold, given the pods that its selector picks. Pods that resolve the ports
// differently (a named target port) come into different slices.
func compute(svc *corev1.Service, pods []*corev1.Pod) []wanted {
	var out []wanted
	for _, pod := range pods {
		if !counts(pod) {
			continue
		}
		ports := resolve(svc, pod)
		at := slices.IndexFunc(out, func(w wanted) bool { return len(w.endpoints) < most && samePorts(w.ports, ports) })
		if at < 0 {
			at = len(out)
			out = append(out, wanted{ports: ports})
		}
		out[at].endpoints = append(out[at].endpoints, endpoint(svc, pod))
	}
	if len(out) == 0 { // an empty slice says that there are none, no slice would say that nobody knows
		out = []wanted{{}}
	}
	for _, w := range out {
		slices.SortFunc(w.endpoints, func(a, b discoveryv1.Endpoint) int { return cmp.Compare(a.TargetRef.Name, b.TargetRef.Name) })
	}
	return out
}

// counts reports whether a pod has, or had until it is gone, something that answers.
func counts(pod *corev1.Pod) bool {
	return pod.Status.PodIP != "" && pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed
}

func endpoint(svc *corev1.Service, pod *corev1.Pod) discoveryv1.Endpoint {
	serving := svc.Spec.PublishNotReadyAddresses || isReady(pod)
	terminating := pod.DeletionTimestamp != nil
	ready := svc.Spec.PublishNotReadyAddresses || serving && !terminating
	e := discoveryv1.Endpoint{
		Addresses:  []string{pod.Status.PodIP},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
	}
	if pod.Spec.NodeName != "" {
		node := pod.Spec.NodeName
		e.NodeName = &node
	}
	if pod.Spec.Hostname != "" && pod.Spec.Subdomain == svc.Name {
		hostname := pod.Spec.Hostname
		e.Hostname = &hostname
	}
	return e
}

func isReady(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// resolve finds the numbers of a service's ports on one pod. A named port that the pod has not is left out.
func resolve(svc *corev1.Service, pod *corev1.Pod) []discoveryv1.EndpointPort {
	var out []discoveryv1.EndpointPort
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		number, has := target(p, pod)
		if !has {
			continue
		}
		name, protocol := p.Name, p.Protocol
		out = append(out, discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &number, AppProtocol: p.AppProtocol})
	}
	return out
}

func target(p *corev1.ServicePort, pod *corev1.Pod) (int32, bool) {
	if p.TargetPort.Type == intstr.Int {
		if p.TargetPort.IntVal == 0 {
			return p.Port, true
		}
		return p.TargetPort.IntVal, true
	}
	find := func(c *corev1.Container) (int32, bool) {
		for _, port := range c.Ports {
			if port.Name == p.TargetPort.StrVal && port.Protocol == p.Protocol {
				return port.ContainerPort, true
			}
		}
		return 0, false
	}
	for i := range pod.Spec.Containers {
		if n, has := find(&pod.Spec.Containers[i]); has {
			return n, true
		}
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			continue
		}
		if n, has := find(c); has {
			return n, true
		}
	}
	return 0, false
}

func samePorts(a, b []discoveryv1.EndpointPort) bool {
	return slices.EqualFunc(a, b, func(x, y discoveryv1.EndpointPort) bool {
		return same(x.Name, y.Name) && same(x.Protocol, y.Protocol) && same(x.Port, y.Port) && same(x.AppProtocol, y.AppProtocol)
	})
}

func same[T comparable](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

const managedBy = "endpointslice-controller.k8s.io"

// dress gives a slice the content and the metadata that follow from its service.
func dress(slice *discoveryv1.EndpointSlice, svc *corev1.Service, w wanted) {
	slice.Labels = maps.Clone(svc.Labels)
	if slice.Labels == nil {
		slice.Labels = map[string]string{}
	}
	slice.Labels[discoveryv1.LabelServiceName] = svc.Name
	slice.Labels[discoveryv1.LabelManagedBy] = managedBy
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		slice.Labels[corev1.IsHeadlessService] = ""
	}
	yes := true
	slice.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Service", Name: svc.Name, UID: svc.UID, Controller: &yes, BlockOwnerDeletion: &yes}}
	slice.Ports, slice.Endpoints = w.ports, w.endpoints
	slice.AddressType = discoveryv1.AddressTypeIPv4
	if len(svc.Spec.IPFamilies) > 0 && svc.Spec.IPFamilies[0] == corev1.IPv6Protocol {
		slice.AddressType = discoveryv1.AddressTypeIPv6
	}
}
