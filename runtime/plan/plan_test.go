package plan

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/oci/capability"
	"worknode/runtime/state"
)

// base is a request that is complete and asks for nothing special.
func base() Input {
	return Input{
		Sandbox: &state.Sandbox{ID: "s", Hostname: "web", Config: &cri.PodSandboxConfig{}},
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "main"},
			Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}}},
		},
		Image: ocispec.ImageConfig{Env: []string{"A=image"}, Cmd: []string{"serve"}, Entrypoint: []string{"/bin/app"}},
		Host:  Host{Caps: capability.All, CgroupV2: true},
		Files: Files{Hosts: "/h/hosts", Hostname: "/h/hostname", Resolv: "/h/resolv", Shm: "/h/shm"},
		Pins:  map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "/p/net", specs.IPCNamespace: "/p/ipc", specs.UTSNamespace: "/p/uts"},
	}
}

func made(t *testing.T, in Input) Made {
	t.Helper()
	m, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestCommand(t *testing.T) {
	image := ocispec.ImageConfig{Entrypoint: []string{"e"}, Cmd: []string{"c"}}
	for name, row := range map[string]struct {
		command, args, want []string
	}{
		"image alone":                    {nil, nil, []string{"e", "c"}},
		"arguments replace the image's":  {nil, []string{"a"}, []string{"e", "a"}},
		"a command drops all of image's": {[]string{"x"}, nil, []string{"x"}},
		"both":                           {[]string{"x"}, []string{"a"}, []string{"x", "a"}},
	} {
		got, err := command(&cri.ContainerConfig{Command: row.command, Args: row.args}, image)
		if err != nil || !slices.Equal(got, row.want) {
			t.Errorf("%s: %v %v, want %v", name, got, err, row.want)
		}
	}
	if _, err := command(&cri.ContainerConfig{}, ocispec.ImageConfig{}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "no command") {
		t.Errorf("nothing to run: %v", err)
	}
}

func TestEnvironment(t *testing.T) {
	in := base()
	in.Config.Envs = []*cri.KeyValue{{Key: "A", Value: []byte("mine")}, {Key: "RAW", Value: []byte{0xff}}, {Key: "A", Value: []byte("last")}}
	in.User.Home = "/home/x"
	want := []string{"PATH=" + defaultPath, "HOSTNAME=web", "A=last", "RAW=\xff", "HOME=/home/x"}
	if diff := cmp.Diff(want, made(t, in).Spec.Process.Env); diff != "" {
		t.Error(diff)
	}
	in.Config.Tty = true
	in.Image.Env = []string{"PATH=/only", "HOME=/from/image"}
	if got := made(t, in).Spec.Process.Env; !slices.Contains(got, "TERM=xterm") || !slices.Contains(got, "PATH=/only") || slices.Contains(got, "HOME=/home/x") {
		t.Errorf("%q", got)
	}
}

func TestCapabilities(t *testing.T) {
	def := capability.List(defaultCaps)
	if len(def) != 14 {
		t.Errorf("%d default capabilities", len(def))
	}
	for name, row := range map[string]struct {
		sc   *cri.LinuxContainerSecurityContext
		host uint64
		want uint64
		amb  uint64
	}{
		"defaults":         {&cri.LinuxContainerSecurityContext{}, capability.All, defaultCaps, 0},
		"add":              {caps([]string{"NET_ADMIN"}, nil, nil), capability.All, defaultCaps | 1<<12, 0},
		"with prefix":      {caps([]string{"CAP_NET_ADMIN"}, nil, nil), capability.All, defaultCaps | 1<<12, 0},
		"drop all add one": {caps([]string{"NET_ADMIN"}, []string{"ALL"}, nil), capability.All, 1 << 12, 0},
		"add all drop one": {caps([]string{"all"}, []string{"SYS_ADMIN"}, nil), capability.All, capability.All &^ (1 << 21), 0},
		"privileged":       {&cri.LinuxContainerSecurityContext{Privileged: true}, capability.All, capability.All, 0},
		"node lacks one":   {&cri.LinuxContainerSecurityContext{Privileged: true}, capability.All &^ (1 << 24), capability.All &^ (1 << 24), 0},
		"ambient":          {caps(nil, []string{"ALL"}, []string{"NET_BIND_SERVICE"}), capability.All, 1 << 10, 1 << 10},
	} {
		got, err := capabilities(row.sc, row.host)
		if err != nil || maskOf(got.Bounding) != row.want || maskOf(got.Ambient) != row.amb || maskOf(got.Effective) != row.want {
			t.Errorf("%s: %v %v", name, got, err)
		}
	}
	if _, err := capabilities(caps([]string{"FLY"}, nil, nil), capability.All); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "FLY") {
		t.Errorf("unknown capability: %v", err)
	}
}

func caps(add, drop, ambient []string) *cri.LinuxContainerSecurityContext {
	return &cri.LinuxContainerSecurityContext{Capabilities: &cri.Capability{AddCapabilities: add, DropCapabilities: drop, AddAmbientCapabilities: ambient}}
}

func TestMounts(t *testing.T) {
	in := base()
	in.Config.Mounts = []*cri.Mount{
		{ContainerPath: "/data/deep/er", HostPath: "/b", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL},
		{ContainerPath: "/data", HostPath: "/a", Readonly: true, RecursiveReadOnly: true},
		{ContainerPath: "/etc/hosts", HostPath: "/kubelet/hosts", Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
		{ContainerPath: "/dev/shm/", HostPath: "/vol/shm"},
	}
	var got []string
	for _, m := range made(t, in).Spec.Mounts {
		got = append(got, m.Destination+" "+m.Source+" "+strings.Join(m.Options, ","))
	}
	want := []string{
		"/proc proc nosuid,noexec,nodev",
		"/dev tmpfs nosuid,strictatime,mode=755,size=65536k",
		"/dev/pts devpts nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
		"/dev/mqueue mqueue nosuid,noexec,nodev",
		"/sys sysfs nosuid,noexec,nodev,ro",
		"/sys/fs/cgroup cgroup nosuid,noexec,nodev,ro",
		"/etc/hostname /h/hostname rbind,rprivate",
		"/etc/resolv.conf /h/resolv rbind,rprivate",
		"/data /a rbind,rprivate,rro",
		"/etc/hosts /kubelet/hosts rbind,rslave",
		"/dev/shm /vol/shm rbind,rprivate",
		"/data/deep/er /b rbind,rshared",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	in = base()
	in.Host = Host{Caps: capability.All, Absent: []string{"mqueue"}, Cgroups: []Bind{{"/sys/fs/cgroup/memory/x", "/sys/fs/cgroup/memory"}}}
	in.Config.Linux.SecurityContext.Privileged = true
	got = nil
	for _, m := range made(t, in).Spec.Mounts {
		got = append(got, m.Destination+" "+strings.Join(m.Options, ","))
	}
	if slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "/dev/mqueue") }) ||
		!slices.Contains(got, "/sys nosuid,noexec,nodev") || !slices.Contains(got, "/sys/fs/cgroup/memory rbind,rprivate,nosuid,noexec,nodev,rw") {
		t.Errorf("privileged on v1 without mqueue: %q", got)
	}
}

func TestNamespaces(t *testing.T) {
	show := func(in Input) string {
		var out []string
		for _, n := range made(t, in).Spec.Linux.Namespaces {
			out = append(out, strings.TrimSuffix(string(n.Type)+"="+n.Path, "="))
		}
		return strings.Join(out, " ")
	}
	in := base()
	pins := " network=/p/net ipc=/p/ipc uts=/p/uts"
	if got := show(in); got != "mount pid"+pins+" cgroup" {
		t.Error(got)
	}
	opts := in.Config.Linux.SecurityContext.NamespaceOptions
	opts.Pid = cri.NamespaceMode_NODE
	if got := show(in); got != "mount"+pins+" cgroup" {
		t.Error(got)
	}
	opts.Pid, in.Pid = cri.NamespaceMode_POD, "/proc/5/ns/pid"
	if got := show(in); got != "mount pid=/proc/5/ns/pid"+pins+" cgroup" {
		t.Error(got)
	}
	in.Host.CgroupV2, in.Pins = false, nil
	if got := show(in); got != "mount pid=/proc/5/ns/pid" {
		t.Error(got)
	}
}

func TestRights(t *testing.T) {
	in := base()
	sc := in.Config.Linux.SecurityContext
	sc.MaskedPaths, sc.ReadonlyPaths, sc.NoNewPrivs, sc.ReadonlyRootfs = []string{"/proc/kcore"}, []string{"/proc/sys"}, true, true
	in.Config.Linux.Resources = &cri.LinuxContainerResources{OomScoreAdj: -3, CpuShares: 5, Unified: map[string]string{"memory.high": "1"}}
	in.Sandbox.Config.Linux = &cri.LinuxPodSandboxConfig{Sysctls: map[string]string{"kernel.shmmax": "9", "net.core.somaxconn": "1"}}
	s := made(t, in).Spec
	if !s.Process.NoNewPrivileges || !s.Root.Readonly || len(s.Linux.MaskedPaths) != 1 || len(s.Linux.ReadonlyPaths) != 1 || *s.Process.OOMScoreAdj != -3 {
		t.Errorf("%+v", s)
	}
	if diff := cmp.Diff(map[string]string{"kernel.shmmax": "9"}, s.Linux.Sysctl); diff != "" {
		t.Error(diff)
	}
	if r := s.Linux.Resources; *r.CPU.Shares != 5 || r.CPU.Quota != nil || r.Memory.Limit != nil || r.Unified["memory.high"] != "1" {
		t.Errorf("%+v", r)
	}
	if rules := s.Linux.Resources.Devices; rules[0].Allow || len(rules) < 10 {
		t.Errorf("devices are not denied by default: %+v", rules)
	}
	sc.Privileged = true
	s = made(t, in).Spec
	if s.Process.NoNewPrivileges || len(s.Linux.MaskedPaths)+len(s.Linux.ReadonlyPaths) != 0 || len(s.Linux.Resources.Devices) != 1 || !s.Linux.Resources.Devices[0].Allow {
		t.Errorf("privileged: %+v", s.Linux)
	}
}

func TestDevices(t *testing.T) {
	in := base()
	in.Config.Devices = []*cri.Device{{HostPath: "/dev/fuse", ContainerPath: "/dev/fuse", Permissions: "rw"}}
	in.Devices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}, {Path: "/dev/null", Type: "c", Major: 9, Minor: 9}}
	s := made(t, in).Spec
	count := 0
	for _, d := range s.Linux.Devices {
		if d.Path == "/dev/null" {
			count++
		}
	}
	if count != 1 || len(s.Linux.Devices) != len(basic)+1 {
		t.Errorf("a requested device must replace a basic one: %+v", s.Linux.Devices)
	}
	if !slices.ContainsFunc(s.Linux.Resources.Devices, func(r specs.LinuxDeviceCgroup) bool {
		return r.Allow && r.Major != nil && *r.Major == 10 && *r.Minor == 229 && r.Access == "rw"
	}) {
		t.Error("the device's permissions are not in the rules")
	}
}

func TestSeccompChoice(t *testing.T) {
	profile := func(k cri.SecurityProfile_ProfileType, ref string) *cri.LinuxContainerSecurityContext {
		return &cri.LinuxContainerSecurityContext{Seccomp: &cri.SecurityProfile{ProfileType: k, LocalhostRef: ref}}
	}
	for name, row := range map[string]struct {
		sc   *cri.LinuxContainerSecurityContext
		want Seccomp
		kind fault.Kind
	}{
		"unset":          {&cri.LinuxContainerSecurityContext{}, Seccomp{}, 0},
		"default":        {profile(cri.SecurityProfile_RuntimeDefault, ""), Seccomp{Default: true}, 0},
		"unconfined":     {profile(cri.SecurityProfile_Unconfined, ""), Seccomp{}, 0},
		"localhost":      {profile(cri.SecurityProfile_Localhost, "/a/b.json"), Seccomp{Path: "/a/b.json"}, 0},
		"relative":       {profile(cri.SecurityProfile_Localhost, "b.json"), Seccomp{}, fault.Invalid},
		"old default":    {&cri.LinuxContainerSecurityContext{SeccompProfilePath: "runtime/default"}, Seccomp{Default: true}, 0},
		"old localhost":  {&cri.LinuxContainerSecurityContext{SeccompProfilePath: "localhost//x"}, Seccomp{Path: "/x"}, 0},
		"old unknown":    {&cri.LinuxContainerSecurityContext{SeccompProfilePath: "odd"}, Seccomp{}, fault.Invalid},
		"privileged one": {&cri.LinuxContainerSecurityContext{Privileged: true, SeccompProfilePath: "runtime/default"}, Seccomp{}, 0},
	} {
		got, err := chooseSeccomp(row.sc)
		if got != row.want || fault.Of(err) != row.kind {
			t.Errorf("%s: %+v %v", name, got, err)
		}
	}
}

func TestRefusedContainers(t *testing.T) {
	for name, row := range map[string]struct {
		change func(*cri.ContainerConfig)
		kind   fault.Kind
		text   string
	}{
		"no name":          {func(c *cri.ContainerConfig) { c.Metadata.Name = "" }, fault.Invalid, "metadata.name"},
		"group alone":      {func(c *cri.ContainerConfig) { c.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 1} }, fault.Invalid, "run_as_group"},
		"negative user":    {func(c *cri.ContainerConfig) { c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: -1} }, fault.Invalid, "out of range"},
		"log outside":      {func(c *cri.ContainerConfig) { c.LogPath = "../x" }, fault.Invalid, "log_path"},
		"relative workdir": {func(c *cri.ContainerConfig) { c.WorkingDir = "x" }, fault.Invalid, "working_dir"},
		"variable name":    {func(c *cri.ContainerConfig) { c.Envs = []*cri.KeyValue{{Key: "A=B"}} }, fault.Invalid, "A=B"},
		"NUL in value":     {func(c *cri.ContainerConfig) { c.Envs = []*cri.KeyValue{{Key: "A", Value: []byte{0}}} }, fault.Invalid, "NUL"},
		"rro without ro":   {mountOf(&cri.Mount{ContainerPath: "/a", HostPath: "/a", RecursiveReadOnly: true}), fault.Invalid, "readonly"},
		"rro propagating": {mountOf(&cri.Mount{ContainerPath: "/a", HostPath: "/a", RecursiveReadOnly: true, Readonly: true,
			Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}), fault.Invalid, "private"},
		"mount on root":  {mountOf(&cri.Mount{ContainerPath: "/x/..", HostPath: "/a"}), fault.Invalid, "hide"},
		"relative mount": {mountOf(&cri.Mount{ContainerPath: "a", HostPath: "/a"}), fault.Invalid, "container_path"},
		"no source":      {mountOf(&cri.Mount{ContainerPath: "/a"}), fault.Invalid, "host_path"},
		"writable image": {mountOf(&cri.Mount{ContainerPath: "/a", Image: &cri.ImageSpec{Image: "x"}}), fault.Invalid, "must be readonly"},
		"unmapped user namespace": {func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD}
		}, fault.Invalid, "exactly one"},
		"foreign user namespace": {func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = mapped(0, 65536, 65536)
		}, fault.Invalid, "of its sandbox"},
		"odd user namespace": {func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_TARGET}
		}, fault.Invalid, "TARGET"},
	} {
		in := base()
		row.change(in.Config)
		if _, err := Container(in); fault.Of(err) != row.kind || !strings.Contains(err.Error(), row.text) {
			t.Errorf("%s: %v (%s)", name, err, fault.Of(err))
		}
	}
}

func mountOf(m *cri.Mount) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{m} }
}

func TestRefusedSandboxes(t *testing.T) {
	good := func() *cri.PodSandboxConfig {
		return &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "p", Namespace: "n"}, Linux: &cri.LinuxPodSandboxConfig{
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{}}}}
	}
	if err := Sandbox(good(), "", nil); err != nil {
		t.Error(err)
	}
	if err := Sandbox(good(), "runc", []string{"runc"}); err != nil {
		t.Error(err)
	}
	for name, row := range map[string]struct {
		change  func(*cri.PodSandboxConfig)
		handler string
		text    string
	}{
		"handler":  {func(*cri.PodSandboxConfig) {}, "kata", "kata"},
		"name":     {func(c *cri.PodSandboxConfig) { c.Metadata = nil }, "", "metadata.name"},
		"hostname": {func(c *cri.PodSandboxConfig) { c.Hostname = strings.Repeat("x", 65) }, "", "64"},
		"logs":     {func(c *cri.PodSandboxConfig) { c.LogDirectory = "logs" }, "", "log_directory"},
		"network mode": {func(c *cri.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_CONTAINER
		}, "", "network"},
		"node's sysctl": {func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"vm.overcommit_memory": "1"} }, "", "vm.overcommit_memory"},
		"host network": {func(c *cri.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
			c.Linux.Sysctls = map[string]string{"net/core/somaxconn": "1"}
		}, "", "host's"},
	} {
		c := good()
		row.change(c)
		if err := Sandbox(c, row.handler, []string{"runc"}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), row.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStopSignal(t *testing.T) {
	for image, want := range map[string]int{"": 15, "SIGQUIT": 3, "quit": 3, "9": 9, "SIGRTMIN+3": 37, "RTMAX-1": 63, "SIGCLD": 17} {
		if got, err := StopSignal(&cri.ContainerConfig{}, image); err != nil || got != want {
			t.Errorf("%s: %d %v, want %d", image, got, err, want)
		}
	}
	for _, bad := range []string{"SIGNOPE", "0", "65", "RTMIN+40", "RTMAX-x"} {
		if _, err := StopSignal(&cri.ContainerConfig{}, bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	for s, want := range map[cri.Signal]int{cri.Signal_SIGNAL_SIGUSR1: 10, cri.Signal_SIGNAL_SIGRTMINPLUS3: 37, cri.Signal_SIGNAL_SIGRTMAX: 64} {
		if got, err := StopSignal(&cri.ContainerConfig{StopSignal: s}, "INT"); err != nil || got != want {
			t.Errorf("%s: %d %v", s, got, err)
		}
	}
	for n := range cri.Signal_name {
		if _, err := StopSignal(&cri.ContainerConfig{StopSignal: cri.Signal(n)}, ""); err != nil {
			t.Errorf("CRI's %s: %v", cri.Signal(n), err)
		}
	}
}

func TestMerge(t *testing.T) {
	got := Merge(&cri.LinuxContainerResources{CpuQuota: 1, MemoryLimitInBytes: 5, OomScoreAdj: 7, Unified: map[string]string{"a": "1"}},
		&cri.LinuxContainerResources{CpuQuota: -1, CpusetCpus: "0", OomScoreAdj: 9, Unified: map[string]string{"b": "2"}})
	if got.CpuQuota != -1 || got.MemoryLimitInBytes != 5 || got.CpusetCpus != "0" || got.OomScoreAdj != 7 || len(got.Unified) != 2 {
		t.Errorf("%v", got)
	}
}

func maskOf(names []string) uint64 {
	mask, _ := capability.Mask(names)
	return mask
}
