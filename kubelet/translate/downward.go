package translate

import (
	"sort"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"worknode/fault"
)

// Field returns the value of a downward API field that lives in the pod's metadata: all that volumes may name.
// Errors: Invalid for any other path.
// Source: Kubernetes docs, Downward API, available fields.
func Field(pod *v1.Pod, path string) (string, error) {
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "metadata.labels":
		return mapText(pod.Labels), nil
	case "metadata.annotations":
		return mapText(pod.Annotations), nil
	}
	name, key, ok := subscript(path)
	switch {
	case ok && name == "metadata.labels":
		return pod.Labels[key], nil
	case ok && name == "metadata.annotations":
		return pod.Annotations[key], nil
	}
	return "", fault.New(fault.Invalid, "unsupported fieldPath: %v", path)
}

// subscript splits name['key'].
func subscript(path string) (name, key string, ok bool) {
	rest, ok := strings.CutSuffix(path, "']")
	if !ok {
		return "", "", false
	}
	return strings.Cut(rest, "['")
}

// mapText prints labels or annotations one a line, sorted, values quoted as Go quotes strings.
func mapText(m map[string]string) string {
	lines := make([]string, 0, len(m))
	for k, v := range m {
		lines = append(lines, k+"="+strconv.Quote(v))
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

// envField is Field for environment variables, which may also name the spec and the pod's addresses but no whole maps.
func envField(pod *v1.Pod, path string, ips []string, node Node) (string, error) {
	switch path {
	case "metadata.labels", "metadata.annotations":
		return "", fault.New(fault.Invalid, "unsupported fieldPath: %v", path)
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return first(node.IPs), nil
	case "status.hostIPs":
		return strings.Join(node.IPs, ","), nil
	}
	if len(ips) == 0 && pod.Spec.HostNetwork {
		ips = node.IPs
	}
	switch path {
	case "status.podIP":
		return first(ips), nil
	case "status.podIPs":
		return strings.Join(ips, ","), nil
	}
	return Field(pod, path)
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// Resource returns a container's request or limit in units of the selector's divisor, rounded up. container is the one
// that refers; the selector may name another of the pod. Limits that are not set are the node's allocatable.
// Errors: Invalid for a container or resource that does not exist.
func Resource(pod *v1.Pod, container *v1.Container, ref *v1.ResourceFieldSelector, allocatable v1.ResourceList) (string, error) {
	if ref.ContainerName != "" {
		if container = FindContainer(pod, ref.ContainerName); container == nil {
			return "", fault.New(fault.Invalid, "container %s not found", ref.ContainerName)
		}
	}
	if container == nil {
		return "", fault.New(fault.Invalid, "resourceFieldRef %s names no container", ref.Resource)
	}
	kind, name, ok := strings.Cut(ref.Resource, ".")
	known := name == "cpu" || name == "memory" || name == "ephemeral-storage" || strings.HasPrefix(name, v1.ResourceHugePagesPrefix)
	if !ok || !known || kind != "limits" && kind != "requests" {
		return "", fault.New(fault.Invalid, "unsupported container resource : %v", ref.Resource)
	}
	rn := v1.ResourceName(name)
	var q resource.Quantity
	if kind == "limits" {
		q, ok = container.Resources.Limits[rn]
		if (!ok || q.IsZero()) && !strings.HasPrefix(name, v1.ResourceHugePagesPrefix) {
			q = allocatable[rn]
		}
	} else {
		q = request(container, rn)
	}
	return divide(q, ref.Divisor, rn == v1.ResourceCPU), nil
}

func divide(q, by resource.Quantity, milli bool) string {
	if by.IsZero() {
		by = resource.MustParse("1")
	}
	a, b := q.Value(), by.Value()
	if milli {
		a, b = q.MilliValue(), by.MilliValue()
	}
	return strconv.FormatInt((a+b-1)/b, 10)
}

// FindContainer returns the regular, init or ephemeral container of that name, or nil.
func FindContainer(pod *v1.Pod, name string) *v1.Container {
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name == name {
			return &pod.Spec.Containers[i]
		}
	}
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return &pod.Spec.InitContainers[i]
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == name {
			return (*v1.Container)(&pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		}
	}
	return nil
}
