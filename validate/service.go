package validate

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Service checks a service's spec. Addresses may still be open: the server assigns them.
func Service(svc *corev1.Service) field.ErrorList {
	spec, path := &svc.Spec, field.NewPath("spec")
	all := oneOf(path.Child("type"), spec.Type, corev1.ServiceTypeClusterIP, corev1.ServiceTypeExternalName, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort)
	all = append(all, oneOf(path.Child("sessionAffinity"), spec.SessionAffinity, corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone)...)
	if c := spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		if s := *c.ClientIP.TimeoutSeconds; s <= 0 || s > 86400 {
			all = append(all, field.Invalid(path.Child("sessionAffinityConfig", "clientIP", "timeoutSeconds"), s, "must be greater than 0 and less than 86400"))
		}
	}
	headless := spec.ClusterIP == corev1.ClusterIPNone
	if len(spec.Ports) == 0 && !headless && spec.Type != corev1.ServiceTypeExternalName {
		all = append(all, field.Required(path.Child("ports"), ""))
	}
	if spec.Type == corev1.ServiceTypeExternalName {
		all = append(all, msgs(path.Child("externalName"), spec.ExternalName, validation.IsDNS1123Subdomain(strings.TrimSuffix(spec.ExternalName, ".")))...)
		if spec.ClusterIP != "" {
			all = append(all, field.Forbidden(path.Child("clusterIP"), "may not be set when `type` is 'ExternalName'"))
		}
	}
	if headless && (spec.Type == corev1.ServiceTypeNodePort || spec.Type == corev1.ServiceTypeLoadBalancer) {
		all = append(all, field.Invalid(path.Child("clusterIPs").Index(0), spec.ClusterIP, "may not be set to 'None' for "+string(spec.Type)+" services"))
	}
	if ip := spec.ClusterIP; ip != "" && !headless {
		all = append(all, validation.IsValidIP(path.Child("clusterIP"), ip)...)
	}
	if spec.Selector != nil {
		all = append(all, metav1validation.ValidateLabels(spec.Selector, path.Child("selector"))...)
	}
	for i, ip := range spec.ExternalIPs {
		all = append(all, validation.IsValidIP(path.Child("externalIPs").Index(i), ip)...)
	}
	if p := spec.InternalTrafficPolicy; p != nil {
		all = append(all, oneOf(path.Child("internalTrafficPolicy"), *p, corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)...)
	}
	if p := spec.ExternalTrafficPolicy; p != "" {
		all = append(all, oneOf(path.Child("externalTrafficPolicy"), p, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)...)
		if spec.Type == corev1.ServiceTypeClusterIP && len(spec.ExternalIPs) == 0 {
			all = append(all, field.Invalid(path.Child("externalTrafficPolicy"), p, "may only be set for externally-accessible services"))
		}
	}
	return append(all, servicePorts(spec, path.Child("ports"))...)
}

func servicePorts(spec *corev1.ServiceSpec, path *field.Path) (all field.ErrorList) {
	type use struct {
		protocol corev1.Protocol
		port     int32
	}
	names, used, nodePorts := map[string]bool{}, map[use]bool{}, map[use]bool{}
	for i := range spec.Ports {
		p, at := &spec.Ports[i], path.Index(i)
		if p.Name == "" && len(spec.Ports) > 1 {
			all = append(all, field.Required(at.Child("name"), ""))
		}
		if p.Name != "" {
			all = append(all, msgs(at.Child("name"), p.Name, validation.IsDNS1123Label(p.Name))...)
			if names[p.Name] {
				all = append(all, field.Duplicate(at.Child("name"), p.Name))
			}
			names[p.Name] = true
		}
		all = append(all, portNumber(p.Port, at.Child("port"))...)
		all = append(all, protocol(p.Protocol, at.Child("protocol"))...)
		all = append(all, portRef(p.TargetPort, at.Child("targetPort"))...)
		if used[use{p.Protocol, p.Port}] {
			all = append(all, field.Duplicate(at, *p))
		}
		used[use{p.Protocol, p.Port}] = true
		if p.NodePort == 0 {
			continue
		}
		if spec.Type == corev1.ServiceTypeClusterIP || spec.Type == corev1.ServiceTypeExternalName {
			all = append(all, field.Forbidden(at.Child("nodePort"), "may not be used when `type` is '"+string(spec.Type)+"'"))
		}
		if nodePorts[use{p.Protocol, p.NodePort}] {
			all = append(all, field.Duplicate(at.Child("nodePort"), p.NodePort))
		}
		nodePorts[use{p.Protocol, p.NodePort}] = true
	}
	return all
}

// ServiceUpdate checks a change of a service.
func ServiceUpdate(svc, old *corev1.Service) (all field.ErrorList) {
	was, now := old.Spec.ClusterIP, svc.Spec.ClusterIP
	bothHaveIP := old.Spec.Type != corev1.ServiceTypeExternalName && svc.Spec.Type != corev1.ServiceTypeExternalName
	if bothHaveIP && was != "" && now != was {
		all = append(all, field.Invalid(field.NewPath("spec", "clusterIPs").Index(0), svc.Spec.ClusterIPs, "may not change once set"))
	}
	return append(all, Service(svc)...)
}
