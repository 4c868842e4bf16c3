package plan

import (
	"path"
	"slices"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
)

// Sandbox refuses a sandbox request that contradicts itself or asks for what this build cannot do.
// known are the handlers beside the native one, which has no name.
func Sandbox(c *cri.PodSandboxConfig, handler string, known []string) error {
	if c.GetMetadata().GetName() == "" {
		return fault.New(fault.Invalid, "sandbox request: metadata.name is empty")
	}
	name := c.GetMetadata().GetNamespace() + "/" + c.GetMetadata().GetName()
	if handler != "" && !slices.Contains(known, handler) {
		return fault.Hint(fault.New(fault.Invalid, "sandbox %s: no runtime handler is called %q", name, handler),
			"add it to the runtime's configuration (handlers), or leave runtimeClassName out for the native one")
	}
	if handler != "" && c.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions().GetMode() == cri.NamespaceMode_POD &&
		c.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions() != nil {
		return fault.New(fault.Unsupported, "sandbox %s: a user namespace of its own needs the native handler, not %s", name, handler)
	}
	if len(c.GetHostname()) > 64 {
		return fault.New(fault.Invalid, "sandbox %s: hostname %q has more than 64 characters", name, c.GetHostname())
	}
	if dir := c.GetLogDirectory(); dir != "" && !path.IsAbs(dir) {
		return fault.New(fault.Invalid, "sandbox %s: log_directory %q is not absolute", name, dir)
	}
	sc := c.GetLinux().GetSecurityContext()
	opts := sc.GetNamespaceOptions()
	for what, mode := range map[string]cri.NamespaceMode{"network": opts.GetNetwork(), "ipc": opts.GetIpc()} {
		if mode != cri.NamespaceMode_POD && mode != cri.NamespaceMode_NODE {
			return fault.New(fault.Invalid, "sandbox %s: namespace mode %s is not possible for %s", name, mode, what)
		}
	}
	if _, err := UserNamespace(opts); err != nil {
		return wrap("sandbox "+name, err)
	}
	for key := range c.GetLinux().GetSysctls() {
		if err := sysctl(key, opts); err != nil {
			return fault.New(fault.Invalid, "sandbox %s: %w", name, err)
		}
	}
	return nil
}

// sysctl lets through what belongs to a namespace of the sandbox. Source: Kubernetes docs, "sysctls in a cluster".
func sysctl(key string, opts *cri.NamespaceOption) error {
	key = strings.ReplaceAll(key, "/", ".")
	switch {
	case strings.HasPrefix(key, "net."):
		if opts.GetNetwork() == cri.NamespaceMode_NODE {
			return fault.New(fault.Invalid, "sysctl %s would change the node, as the network is the host's", key)
		}
		return nil
	case strings.HasPrefix(key, "kernel.shm"), strings.HasPrefix(key, "kernel.msg"), key == "kernel.sem", strings.HasPrefix(key, "fs.mqueue."):
		if opts.GetIpc() == cri.NamespaceMode_NODE {
			return fault.New(fault.Invalid, "sysctl %s would change the node, as ipc is the host's", key)
		}
		return nil
	}
	return fault.New(fault.Invalid, "sysctl %s does not belong to a namespace", key)
}

// Check refuses a container request that contradicts itself or asks for what this build cannot do.
func Check(c *cri.ContainerConfig) error {
	name := "container " + c.GetMetadata().GetName()
	if c.GetMetadata().GetName() == "" {
		return fault.New(fault.Invalid, "container request: metadata.name is empty")
	}
	sc := c.GetLinux().GetSecurityContext()
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil && sc.GetRunAsUsername() == "" {
		return fault.New(fault.Invalid, "%s: run_as_group is set without run_as_user or run_as_username", name)
	}
	for what, id := range map[string]*cri.Int64Value{"run_as_user": sc.GetRunAsUser(), "run_as_group": sc.GetRunAsGroup()} {
		if id != nil && (id.GetValue() < 0 || id.GetValue() >= 1<<32-1) {
			return fault.New(fault.Invalid, "%s: %s %d is out of range", name, what, id.GetValue())
		}
	}
	if p := c.GetLogPath(); p != "" && (path.IsAbs(p) || !within(p)) {
		return fault.New(fault.Invalid, "%s: log_path %q must stay below the sandbox's log_directory", name, p)
	}
	if wd := c.GetWorkingDir(); wd != "" && !path.IsAbs(wd) {
		return fault.New(fault.Invalid, "%s: working_dir %q is not absolute", name, wd)
	}
	for _, kv := range c.GetEnvs() {
		if kv.GetKey() == "" || strings.ContainsAny(kv.GetKey(), "=\x00") || strings.IndexByte(string(kv.GetValue()), 0) >= 0 {
			return fault.New(fault.Invalid, "%s: environment variable %q has no usable name or a NUL byte", name, kv.GetKey())
		}
	}
	if _, err := UserNamespace(sc.GetNamespaceOptions()); err != nil {
		return wrap(name, err)
	}
	if _, err := chooseSeccomp(sc); err != nil {
		return wrap(name, err)
	}
	if a := sc.GetApparmor(); a.GetProfileType() == cri.SecurityProfile_Localhost {
		return fault.New(fault.Unsupported, "%s: AppArmor profile %q: AppArmor is not supported yet", name, a.GetLocalhostRef())
	}
	for _, m := range c.GetMounts() {
		if err := checkMount(m); err != nil {
			return wrap(name, err)
		}
	}
	return nil
}

// wrap names the container and keeps the kind.
func wrap(name string, err error) error { return fault.New(fault.Of(err), "%s: %w", name, err) }

func checkMount(m *cri.Mount) error {
	switch {
	case !path.IsAbs(m.GetContainerPath()):
		return fault.New(fault.Invalid, "mount: container_path %q is not absolute", m.GetContainerPath())
	case path.Clean(m.GetContainerPath()) == "/":
		return fault.New(fault.Invalid, "mount: container_path / would hide the image")
	case m.GetImage().GetImage() != "":
		return checkImageMount(m)
	case !path.IsAbs(m.GetHostPath()):
		return fault.New(fault.Invalid, "mount %s: host_path %q is not absolute", m.GetContainerPath(), m.GetHostPath())
	case len(m.GetMountOptions()) > 0:
		return fault.New(fault.Unsupported, "mount %s: mount_options are not supported", m.GetContainerPath())
	case m.GetRecursiveReadOnly() && !m.GetReadonly():
		return fault.New(fault.Invalid, "mount %s: recursive_read_only needs readonly", m.GetContainerPath())
	case m.GetRecursiveReadOnly() && m.GetPropagation() != cri.MountPropagation_PROPAGATION_PRIVATE:
		return fault.New(fault.Invalid, "mount %s: recursive_read_only needs private propagation", m.GetContainerPath())
	}
	return nil
}

// checkImageMount holds an image volume to CRI's rules. Source: CRI Mount.image, .image_sub_path; KEP-4639.
func checkImageMount(m *cri.Mount) error {
	sub := m.GetImageSubPath()
	switch {
	case !m.GetReadonly():
		return fault.New(fault.Invalid, "mount %s: an image volume must be readonly", m.GetContainerPath())
	case m.GetHostPath() != "":
		return fault.New(fault.Invalid, "mount %s: image %q and host_path %q exclude each other", m.GetContainerPath(), m.GetImage().GetImage(), m.GetHostPath())
	case path.IsAbs(sub) || !within(sub):
		return fault.New(fault.Invalid, "mount %s: image_sub_path %q must be relative and stay inside the image", m.GetContainerPath(), sub)
	}
	return nil
}

// within reports whether a relative path stays below its parent.
func within(p string) bool {
	p = path.Clean(p)
	return p != ".." && !strings.HasPrefix(p, "../")
}
