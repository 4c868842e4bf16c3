package translate

import (
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
)

// What containers must not see or not write of the kernel's trees, unless procMount says otherwise.
// Source: Kubernetes docs, security context, procMount; OCI runtime-spec, maskedPaths and readonlyPaths.
var (
	maskedPaths = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		"/sys/devices/virtual/powercap",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// Effective returns a container's security context with the pod's values where it sets none.
func Effective(pod *v1.Pod, c *v1.Container) v1.SecurityContext {
	var out v1.SecurityContext
	if c.SecurityContext != nil {
		out = *c.SecurityContext
	}
	p := pod.Spec.SecurityContext
	if p == nil {
		return out
	}
	if out.RunAsUser == nil {
		out.RunAsUser = p.RunAsUser
	}
	if out.RunAsGroup == nil {
		out.RunAsGroup = p.RunAsGroup
	}
	if out.RunAsNonRoot == nil {
		out.RunAsNonRoot = p.RunAsNonRoot
	}
	if out.SELinuxOptions == nil {
		out.SELinuxOptions = p.SELinuxOptions
	}
	if out.SeccompProfile == nil {
		out.SeccompProfile = p.SeccompProfile
	}
	if out.AppArmorProfile == nil {
		out.AppArmorProfile = p.AppArmorProfile
	}
	return out
}

func containerSecurity(in *ContainerInput) (*cri.LinuxContainerSecurityContext, error) {
	sc := Effective(in.Pod, in.Container)
	uid := in.Image.UID
	if uid == nil && in.Image.User == "" {
		uid = new(int64) // an image without USER runs as root
	}
	if err := nonRoot(in, sc, uid); err != nil {
		return nil, err
	}
	out := &cri.LinuxContainerSecurityContext{
		Privileged:       isTrue(sc.Privileged),
		ReadonlyRootfs:   isTrue(sc.ReadOnlyRootFilesystem),
		NoNewPrivs:       sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation,
		NamespaceOptions: namespaces(in.Pod),
	}
	if in.TargetID != "" {
		out.NamespaceOptions.Pid, out.NamespaceOptions.TargetId = cri.NamespaceMode_TARGET, in.TargetID
	}
	switch {
	case sc.RunAsUser != nil:
		out.RunAsUser = &cri.Int64Value{Value: *sc.RunAsUser}
	case uid != nil:
		out.RunAsUser = &cri.Int64Value{Value: *uid}
	default:
		out.RunAsUsername = in.Image.User
	}
	if sc.RunAsGroup != nil {
		out.RunAsGroup = &cri.Int64Value{Value: *sc.RunAsGroup}
	}
	if c := sc.Capabilities; c != nil {
		out.Capabilities = &cri.Capability{AddCapabilities: capNames(c.Add), DropCapabilities: capNames(c.Drop)}
	}
	if p := in.Pod.Spec.SecurityContext; p != nil {
		out.SupplementalGroups, out.SupplementalGroupsPolicy = groups(p)
	}
	if !out.Privileged && (sc.ProcMount == nil || *sc.ProcMount != v1.UnmaskedProcMount) {
		out.MaskedPaths, out.ReadonlyPaths = maskedPaths, readonlyPaths
	}
	out.SelinuxOptions = selinux(sc.SELinuxOptions)
	var err error
	if out.Seccomp, err = seccomp(sc.SeccompProfile, in.Node); err != nil {
		return nil, err
	}
	out.Apparmor = appArmor(sc.AppArmorProfile)
	return out, nil
}

// nonRoot refuses a container that would run as root, or might, against the pod's will.
func nonRoot(in *ContainerInput, sc v1.SecurityContext, uid *int64) error {
	if !isTrue(sc.RunAsNonRoot) {
		return nil
	}
	pod, name := podText(in.Pod), in.Container.Name
	switch {
	case sc.RunAsUser != nil && *sc.RunAsUser == 0:
		return fault.New(fault.Invalid, "container's runAsUser breaks non-root policy (pod: %q, container: %s)", pod, name)
	case sc.RunAsUser != nil:
		return nil
	case uid != nil && *uid == 0:
		return fault.New(fault.Invalid, "container has runAsNonRoot and image will run as root (pod: %q, container: %s)", pod, name)
	case uid == nil:
		return fault.New(fault.Invalid,
			"container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root (pod: %q, container: %s)",
			in.Image.User, pod, name)
	}
	return nil
}

func isTrue(b *bool) bool { return b != nil && *b }

func capNames(in []v1.Capability) []string {
	out := make([]string, 0, len(in))
	for _, c := range in {
		out = append(out, strings.TrimPrefix(string(c), "CAP_"))
	}
	return out
}

// groups are those every process of the pod belongs to: the owner of its volumes and those it lists.
func groups(p *v1.PodSecurityContext) ([]int64, cri.SupplementalGroupsPolicy) {
	var out []int64
	if p.FSGroup != nil {
		out = append(out, *p.FSGroup)
	}
	out = append(out, p.SupplementalGroups...)
	if p.SupplementalGroupsPolicy != nil && *p.SupplementalGroupsPolicy == v1.SupplementalGroupsPolicyStrict {
		return out, cri.SupplementalGroupsPolicy_Strict
	}
	return out, cri.SupplementalGroupsPolicy_Merge
}

func namespaces(pod *v1.Pod) *cri.NamespaceOption {
	out := &cri.NamespaceOption{Network: cri.NamespaceMode_POD, Pid: cri.NamespaceMode_CONTAINER, Ipc: cri.NamespaceMode_POD}
	if pod.Spec.HostNetwork {
		out.Network = cri.NamespaceMode_NODE
	}
	if pod.Spec.HostIPC {
		out.Ipc = cri.NamespaceMode_NODE
	}
	switch {
	case pod.Spec.HostPID:
		out.Pid = cri.NamespaceMode_NODE
	case isTrue(pod.Spec.ShareProcessNamespace):
		out.Pid = cri.NamespaceMode_POD
	}
	return out
}

func selinux(o *v1.SELinuxOptions) *cri.SELinuxOption {
	if o == nil {
		return nil
	}
	return &cri.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}

func seccomp(p *v1.SeccompProfile, node Node) (*cri.SecurityProfile, error) {
	if p == nil {
		if node.SeccompDefault {
			return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, nil
		}
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, nil
	}
	switch p.Type {
	case v1.SeccompProfileTypeRuntimeDefault:
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, nil
	case v1.SeccompProfileTypeUnconfined:
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, nil
	case v1.SeccompProfileTypeLocalhost:
		if p.LocalhostProfile == nil || *p.LocalhostProfile == "" {
			return nil, fault.New(fault.Invalid, "localhostProfile must be set if seccompProfile type is Localhost.")
		}
		if !filepath.IsLocal(*p.LocalhostProfile) {
			return nil, fault.New(fault.Invalid, "seccomp localhostProfile %q leaves the node's profile directory", *p.LocalhostProfile)
		}
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost,
			LocalhostRef: filepath.Join(node.SeccompRoot, *p.LocalhostProfile)}, nil
	}
	return nil, fault.New(fault.Invalid, "seccomp profile type %q is not known (use RuntimeDefault, Localhost or Unconfined)", p.Type)
}

func appArmor(p *v1.AppArmorProfile) *cri.SecurityProfile {
	if p == nil {
		return nil
	}
	switch p.Type {
	case v1.AppArmorProfileTypeRuntimeDefault:
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	case v1.AppArmorProfileTypeLocalhost:
		if p.LocalhostProfile != nil {
			return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: *p.LocalhostProfile}
		}
	}
	return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
}
