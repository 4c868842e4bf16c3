package defaults

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Service fills in what svc leaves open. Addresses and node ports are not defaults: the server assigns them.
func Service(svc *corev1.Service) {
	spec := &svc.Spec
	fill(&spec.SessionAffinity, corev1.ServiceAffinityNone)
	if spec.SessionAffinity == corev1.ServiceAffinityNone {
		spec.SessionAffinityConfig = nil
	}
	if spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		set(&spec.SessionAffinityConfig, corev1.SessionAffinityConfig{})
		set(&spec.SessionAffinityConfig.ClientIP, corev1.ClientIPConfig{})
		set(&spec.SessionAffinityConfig.ClientIP.TimeoutSeconds, corev1.DefaultClientIPServiceAffinitySeconds)
	}
	fill(&spec.Type, corev1.ServiceTypeClusterIP)
	for i := range spec.Ports {
		p := &spec.Ports[i]
		fill(&p.Protocol, corev1.ProtocolTCP)
		if p.TargetPort == intstr.FromInt32(0) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	outside := spec.Type == corev1.ServiceTypeNodePort || spec.Type == corev1.ServiceTypeLoadBalancer
	if outside || spec.Type == corev1.ServiceTypeClusterIP && len(spec.ExternalIPs) > 0 {
		fill(&spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	if spec.Type != corev1.ServiceTypeExternalName {
		set(&spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster)
	}
	if spec.Type == corev1.ServiceTypeLoadBalancer {
		set(&spec.AllocateLoadBalancerNodePorts, true)
	}
}

// Secret fills in what secret leaves open. stringData, which is never read back, moves into data.
func Secret(secret *corev1.Secret) {
	fill(&secret.Type, corev1.SecretTypeOpaque)
	for k, v := range secret.StringData {
		if secret.Data == nil {
			secret.Data = map[string][]byte{}
		}
		secret.Data[k] = []byte(v)
	}
	secret.StringData = nil
}

// Namespace fills in the label that every namespace has and the phase.
func Namespace(ns *corev1.Namespace) {
	if ns.Name != "" {
		if ns.Labels == nil {
			ns.Labels = map[string]string{}
		}
		ns.Labels[corev1.LabelMetadataName] = ns.Name
	}
	fill(&ns.Status.Phase, corev1.NamespaceActive)
}

// Node fills in allocatable where only capacity is known, and rounds as the API does.
func Node(node *corev1.Node) {
	if node.Status.Allocatable == nil && node.Status.Capacity != nil {
		node.Status.Allocatable = node.Status.Capacity.DeepCopy()
	}
	roundUp(node.Status.Capacity)
	roundUp(node.Status.Allocatable)
}

// EndpointSlice fills in the ports' names and protocols.
func EndpointSlice(slice *discoveryv1.EndpointSlice) {
	for i := range slice.Ports {
		set(&slice.Ports[i].Name, "")
		set(&slice.Ports[i].Protocol, corev1.ProtocolTCP)
	}
}

// Object fills in what obj leaves open, whatever its kind. Kinds without defaults stay as they are.
func Object(obj any) {
	switch o := obj.(type) {
	case *corev1.Pod:
		Pod(o)
	case *corev1.Service:
		Service(o)
	case *corev1.Secret:
		Secret(o)
	case *corev1.Namespace:
		Namespace(o)
	case *corev1.Node:
		Node(o)
	case *discoveryv1.EndpointSlice:
		EndpointSlice(o)
	}
}
