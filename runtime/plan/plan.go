// Package plan is the pure heart of the runtime: from a CRI request and what is known of the node to an OCI runtime
// spec. It opens nothing and asks nobody; whatever needs the disk or the kernel arrives in Input.
package plan

import (
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/runtime/state"
)

// defaultPath is what a process finds as PATH when neither image nor request says otherwise.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Input is all that decides how a container is made.
type Input struct {
	Sandbox *state.Sandbox
	Config  *cri.ContainerConfig
	Image   ocispec.ImageConfig
	User    state.User
	Host    Host
	Files   Files
	Pins    map[specs.LinuxNamespaceType]string // namespaces of the sandbox: net, ipc, uts, user -> path
	Pid     string                              // namespace to enter for the modes POD and TARGET
	Volumes []state.Volume                      // image volumes of Config.Mounts, found on the disk
	Devices []specs.LinuxDevice                 // what Config.Devices names, looked up; all of /dev when privileged
	Cgroup  string
	Edits   []state.Edit // what CDI and NRI change, in order
}

// Host is what a plan must know of the node.
type Host struct {
	CgroupV2 bool
	UserNS   bool     // pods may have user namespaces: the kernel, and the filesystem of the layers, can map owners
	Caps     uint64   // capabilities this process has: none can be given that are not here
	Cgroups  []Bind   // v1: the container's own groups, to show below /sys/fs/cgroup
	Absent   []string // optional filesystems this kernel lacks, such as mqueue
}

// Bind shows Source at Destination.
type Bind struct{ Source, Destination string }

// Files are host paths of what a sandbox's containers share.
type Files struct{ Hosts, Hostname, Resolv, Shm string }

// Made is a finished plan. Seccomp is a choice, not a profile: compiling is left to who can cache.
type Made struct {
	Spec    *specs.Spec
	Seccomp Seccomp
}

// Container plans one container.
// Errors: Invalid when the request contradicts itself; Unsupported when it asks for what this build cannot do.
func Container(in Input) (Made, error) {
	if err := Check(in.Config); err != nil {
		return Made{}, err
	}
	sc := in.Config.GetLinux().GetSecurityContext()
	args, err := command(in.Config, in.Image)
	if err != nil {
		return Made{}, err
	}
	seccomp, err := chooseSeccomp(sc)
	if err != nil {
		return Made{}, err
	}
	caps, err := capabilities(sc, in.Host.Caps)
	if err != nil {
		return Made{}, err
	}
	users, err := sameUsers(in)
	if err != nil {
		return Made{}, err
	}
	res := in.Config.GetLinux().GetResources()
	spec := &specs.Spec{
		Version:     specs.Version,
		Hostname:    in.Sandbox.Hostname,
		Annotations: in.Config.GetAnnotations(),
		Root:        &specs.Root{Readonly: sc.GetReadonlyRootfs()},
		Process: &specs.Process{
			Terminal:        in.Config.GetTty(),
			User:            User(in.User),
			Args:            args,
			Env:             environment(in),
			Cwd:             workdir(in.Config, in.Image),
			Capabilities:    caps,
			NoNewPrivileges: sc.GetNoNewPrivs() && !sc.GetPrivileged(),
		},
		Mounts: mounts(in, users),
		Linux: &specs.Linux{
			CgroupsPath: in.Cgroup,
			Namespaces:  namespaces(in),
			UIDMappings: users.uids(),
			GIDMappings: users.gids(),
			Devices:     devices(in),
			Resources:   Resources(res, in),
			Sysctl:      ipcSysctls(in.Sandbox),
		},
	}
	if res != nil {
		adj := int(res.GetOomScoreAdj())
		spec.Process.OOMScoreAdj = &adj
	}
	if !sc.GetPrivileged() {
		spec.Linux.MaskedPaths = sc.GetMaskedPaths()
		spec.Linux.ReadonlyPaths = sc.GetReadonlyPaths()
	}
	for _, e := range in.Edits {
		if err := Apply(spec, e); err != nil {
			return Made{}, err
		}
	}
	return Made{spec, seccomp}, supported(spec)
}

// supported refuses what an edit may ask for and this build cannot do: left out in silence, it would be missed later.
func supported(spec *specs.Spec) error {
	l := spec.Linux
	for what, asked := range map[string]bool{
		"RDT": l.IntelRdt != nil, "network devices of the host": len(l.NetDevices) > 0,
		"a seccomp listener": l.Seccomp != nil && l.Seccomp.ListenerPath != "",
	} {
		if asked {
			return fault.Hint(fault.New(fault.Unsupported, "the container is to get %s, which this build cannot give", what), "a CDI device or an NRI plugin asks for it")
		}
	}
	return nil
}

// User is a process's user as the OCI spec writes it.
func User(u state.User) specs.User {
	return specs.User{UID: u.UID, GID: u.GID, AdditionalGids: u.Groups}
}

// command joins image and request. A command in the request drops the image's arguments too.
// Source: CRI ContainerConfig.command and .args; Kubernetes docs, "define a command and arguments".
func command(c *cri.ContainerConfig, image ocispec.ImageConfig) ([]string, error) {
	cmd, args := c.GetCommand(), c.GetArgs()
	if len(cmd) == 0 {
		cmd = image.Entrypoint
		if len(args) == 0 {
			args = image.Cmd
		}
	}
	out := slices.Concat(cmd, args)
	if len(out) == 0 || out[0] == "" {
		return nil, fault.Hint(fault.New(fault.Invalid, "container %s: no command specified, neither by the image nor by the request", c.GetMetadata().GetName()),
			"set a command, or an entrypoint in the image")
	}
	return out, nil
}

// environment lets the request override the image. Values may be any bytes but NUL.
func environment(in Input) []string {
	c := in.Config
	env := make([]string, 0, len(in.Image.Env)+len(c.GetEnvs())+4)
	at := make(map[string]int, cap(env))
	set := func(key, entry string) {
		if i, ok := at[key]; ok {
			env[i] = entry
			return
		}
		at[key] = len(env)
		env = append(env, entry)
	}
	set("PATH", "PATH="+defaultPath)
	if in.Sandbox.Hostname != "" {
		set("HOSTNAME", "HOSTNAME="+in.Sandbox.Hostname)
	}
	if c.GetTty() {
		set("TERM", "TERM=xterm")
	}
	for _, entry := range in.Image.Env {
		key, _, _ := strings.Cut(entry, "=")
		set(key, entry)
	}
	for _, kv := range c.GetEnvs() {
		set(kv.GetKey(), kv.GetKey()+"="+string(kv.GetValue()))
	}
	if _, ok := at["HOME"]; !ok {
		home := in.User.Home
		if home == "" {
			home = "/"
		}
		set("HOME", "HOME="+home)
	}
	return env
}

func workdir(c *cri.ContainerConfig, image ocispec.ImageConfig) string {
	if c.GetWorkingDir() != "" {
		return c.GetWorkingDir()
	}
	if image.WorkingDir != "" {
		return image.WorkingDir
	}
	return "/"
}

// namespaces lists what the container enters (with a path) and what is made for it (without).
func namespaces(in Input) []specs.LinuxNamespace {
	out := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	opts := in.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	switch opts.GetPid() {
	case cri.NamespaceMode_CONTAINER:
		out = append(out, specs.LinuxNamespace{Type: specs.PIDNamespace})
	case cri.NamespaceMode_POD, cri.NamespaceMode_TARGET:
		out = append(out, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: in.Pid})
	}
	for _, kind := range []specs.LinuxNamespaceType{specs.UserNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace} {
		if path := in.Pins[kind]; path != "" {
			out = append(out, specs.LinuxNamespace{Type: kind, Path: path})
		}
	}
	// On v1 a cgroup namespace hides nothing that the bind mounts below /sys/fs/cgroup do not hide already.
	if in.Host.CgroupV2 && !in.Config.GetLinux().GetSecurityContext().GetPrivileged() {
		out = append(out, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return out
}

// ipcSysctls are those that each container's init writes, inside the pod's ipc namespace; those of the network were
// written when the sandbox was made.
func ipcSysctls(s *state.Sandbox) map[string]string {
	var out map[string]string
	for key, value := range s.Config.GetLinux().GetSysctls() {
		key = strings.ReplaceAll(key, "/", ".")
		if strings.HasPrefix(key, "net.") {
			continue
		}
		if out == nil {
			out = map[string]string{}
		}
		out[key] = value
	}
	return out
}
