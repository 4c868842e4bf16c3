package translate

import (
	"maps"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// LogDir is where the runtime writes the logs of a pod's containers.
func LogDir(root string, pod *v1.Pod) string {
	return filepath.Join(root, pod.Namespace+"_"+pod.Name+"_"+string(pod.UID))
}

// Sandbox returns the config of a pod's sandbox. attempt counts its sandboxes from zero; cgroupParent is the pod's cgroup.
// Errors: Invalid if the pod's host name cannot be set.
func Sandbox(pod *v1.Pod, node Node, attempt uint32, cgroupParent string) (*cri.PodSandboxConfig, error) {
	dns, _ := PodDNS(pod, node)
	out := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{
			Name: pod.Name, Namespace: pod.Namespace, Uid: string(pod.UID), Attempt: attempt,
		},
		LogDirectory: LogDir(node.LogRoot, pod),
		DnsConfig:    dns.cri(),
		Labels:       podLabels(pod, len(pod.Labels)),
		Annotations:  maps.Clone(pod.Annotations),
		Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: cgroupParent},
	}
	for k, v := range pod.Labels {
		if _, ours := out.Labels[k]; !ours {
			out.Labels[k] = v
		}
	}
	if !pod.Spec.HostNetwork {
		name, err := kernelName(pod, node)
		if err != nil {
			return nil, err
		}
		out.Hostname = name
		out.PortMappings = ports(pod)
	}
	sandboxLinux(out.Linux, pod, node)
	return out, nil
}

func podLabels(pod *v1.Pod, room int) map[string]string {
	out := make(map[string]string, room+4)
	out[LabelPodName] = pod.Name
	out[LabelPodNamespace] = pod.Namespace
	out[LabelPodUID] = string(pod.UID)
	return out
}

func sandboxLinux(out *cri.LinuxPodSandboxConfig, pod *v1.Pod, node Node) {
	sc := &cri.LinuxSandboxSecurityContext{
		NamespaceOptions: namespaces(pod),
		Privileged:       anyPrivileged(pod),
		// Containers have profiles of their own; a sandbox's own process, where a runtime has one, needs nothing more.
		Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
	}
	out.SecurityContext = sc
	out.Resources, out.Overhead = sandboxResources(pod, node)
	p := pod.Spec.SecurityContext
	if p == nil {
		return
	}
	if p.RunAsUser != nil {
		sc.RunAsUser = &cri.Int64Value{Value: *p.RunAsUser}
		if p.RunAsGroup != nil {
			sc.RunAsGroup = &cri.Int64Value{Value: *p.RunAsGroup}
		}
	}
	sc.SupplementalGroups, sc.SupplementalGroupsPolicy = groups(p)
	sc.SelinuxOptions = selinux(p.SELinuxOptions)
	if len(p.Sysctls) > 0 {
		out.Sysctls = make(map[string]string, len(p.Sysctls))
		for _, s := range p.Sysctls {
			out.Sysctls[dotted(s.Name)] = s.Value
		}
	}
}

// dotted writes a sysctl's name with dots. In a name with slashes (net/ipv4/conf/eth0.100/forwarding) the separators
// are the slashes and a dot belongs to a part, so the two change places.
func dotted(name string) string {
	at := strings.IndexAny(name, "./")
	if at < 0 || name[at] == '.' {
		return name
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '/':
			return '.'
		case '.':
			return '/'
		}
		return r
	}, name)
}

func anyPrivileged(pod *v1.Pod) bool {
	for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if sc := list[i].SecurityContext; sc != nil && isTrue(sc.Privileged) {
				return true
			}
		}
	}
	return false
}

// ports lists the host ports of regular containers and sidecars.
func ports(pod *v1.Pod) []*cri.PortMapping {
	var out []*cri.PortMapping
	add := func(c *v1.Container) {
		for _, p := range c.Ports {
			if p.HostPort == 0 {
				continue // CRI: a mapping without a host port says nothing
			}
			protocol := cri.Protocol_TCP
			switch p.Protocol {
			case v1.ProtocolUDP:
				protocol = cri.Protocol_UDP
			case v1.ProtocolSCTP:
				protocol = cri.Protocol_SCTP
			}
			out = append(out, &cri.PortMapping{Protocol: protocol, ContainerPort: p.ContainerPort, HostPort: p.HostPort, HostIp: p.HostIP})
		}
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; isSidecar(pod, c.Name) {
			add(c)
		}
	}
	return out
}
