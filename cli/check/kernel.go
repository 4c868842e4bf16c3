package check

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"worknode/kernel/cgroup"
	"worknode/kernel/nft"
)

// version is a kernel's, such as 6 and 1.
type version struct{ major, minor int }

func (v version) before(o version) bool {
	return v.major < o.major || v.major == o.major && v.minor < o.minor
}

func (v version) String() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }

// needs are what kernels gave us, and when; without is what a node does without.
var needs = []struct {
	since   version
	what    string
	without string
	fatal   bool
}{
	{version{5, 6}, "openat2 (safe look-ups in images)", "images cannot be unpacked", true},
	{version{5, 12}, "idmapped mounts", "no pods with user namespaces", false},
	{version{5, 14}, "cgroup.kill", "pods that fork fast take longer to end", false},
	{version{6, 3}, "idmapped mounts of tmpfs", "no Secrets, ConfigMaps or memory volumes in pods with user namespaces", false},
	{version{6, 9}, "nftables tables with a persistent owner", "others can remove the service proxy's rules", false},
	{version{6, 15}, "exit codes from pidfds", "an exit while the monitor is down may be reported as unknown", false},
}

func kernel(Where) []Result {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return one(warn("", "uname: %v", err))
	}
	release := unix.ByteSliceToString(u.Release[:])
	have := parseVersion(release)
	var out []Result
	for _, n := range needs {
		if !have.before(n.since) {
			continue
		}
		make := warn
		if n.fatal {
			make = fail
		}
		out = append(out, make("boot a kernel of "+n.since.String()+" or later", "%s has no %s: %s", release, n.what, n.without))
	}
	if out == nil {
		out = one(ok("%s", release))
	}
	return out
}

func parseVersion(release string) (v version) {
	major, rest, _ := strings.Cut(release, ".")
	v.major, _ = strconv.Atoi(major)
	minor := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
	v.minor, _ = strconv.Atoi(minor)
	return v
}

func features(Where) []Result {
	var out []Result
	var lacks []string
	for _, ns := range []string{"net", "mnt", "pid", "ipc", "uts", "cgroup", "user", "time"} {
		if _, err := os.Stat("/proc/self/ns/" + ns); err != nil && ns != "time" {
			lacks = append(lacks, ns)
		}
	}
	switch {
	case len(lacks) > 0 && !slices.Equal(lacks, []string{"user"}):
		out = append(out, Result{"namespaces", Fail, "this kernel has none for " + list(lacks), "use a kernel built with CONFIG_NAMESPACES and all below it"})
	case len(lacks) > 0:
		out = append(out, Result{"namespaces", Warn, "no user namespaces", "use a kernel with CONFIG_USER_NS"})
	default:
		out = append(out, Result{Name: "namespaces", State: OK, Says: "all kinds"})
	}
	if data, err := os.ReadFile("/proc/sys/user/max_user_namespaces"); err == nil && strings.TrimSpace(string(data)) == "0" {
		out = append(out, Result{"user namespaces", Warn, "switched off", "sysctl user.max_user_namespaces=15000"})
	}
	data, _ := os.ReadFile("/proc/filesystems")
	for fs, fatal := range map[string]bool{"overlay": true, "tmpfs": true} {
		if !slices.Contains(strings.Fields(string(data)), fs) {
			state := Warn
			if fatal {
				state = Fail
			}
			out = append(out, Result{"file systems", state, "no " + fs, "modprobe " + fs + ", or use a kernel built with it"})
		}
	}
	if _, err := os.Stat("/proc/sys/kernel/seccomp/actions_avail"); err != nil {
		out = append(out, Result{"seccomp", Fail, "not in this kernel: RuntimeDefault cannot be kept", "use a kernel with CONFIG_SECCOMP_FILTER"})
	} else {
		out = append(out, Result{Name: "seccomp", State: OK, Says: "filters"})
	}
	return out
}

// capabilities that the processes of a node need, by number. Source: include/uapi/linux/capability.h.
var capabilities = []struct {
	bit     uint
	name    string
	without string
	fatal   bool
}{
	{0, "CAP_CHOWN", "volumes and images keep no owners", true}, {1, "CAP_DAC_OVERRIDE", "files of pods cannot be read", true},
	{5, "CAP_KILL", "containers cannot be stopped", true}, {12, "CAP_NET_ADMIN", "no pod networks", true},
	{18, "CAP_SYS_CHROOT", "no containers", true}, {21, "CAP_SYS_ADMIN", "no namespaces, mounts and cgroups", true},
	{27, "CAP_MKNOD", "no devices in images, no marks of deletion", true},
	{24, "CAP_SYS_RESOURCE", "limits and scores against the OOM killer cannot be raised", false},
	{19, "CAP_SYS_PTRACE", "processes of pods with user namespaces cannot be looked at", false},
}

func rights(Where) []Result {
	if os.Geteuid() != 0 {
		return one(fail("run it with sudo; what follows may say less than the truth", "not root"))
	}
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return one(warn("mount /proc", "%v", err))
	}
	var bits uint64
	for line := range strings.Lines(string(data)) {
		if text, found := strings.CutPrefix(line, "CapEff:"); found {
			bits, _ = strconv.ParseUint(strings.TrimSpace(text), 16, 64)
		}
	}
	var out []Result
	for _, c := range capabilities {
		if bits>>c.bit&1 == 1 {
			continue
		}
		make := warn
		if c.fatal {
			make = fail
		}
		out = append(out, make("run the node outside of a restricted container or unit", "root has no %s: %s", c.name, c.without))
	}
	if out == nil {
		out = one(ok("all that a node needs"))
	}
	return out
}

func cgroups(Where) []Result {
	tree, err := cgroup.Open()
	if err != nil {
		return one(fail("mount cgroup2 on /sys/fs/cgroup", "%v", err))
	}
	var out []Result
	if !tree.V2() {
		out = append(out, warn("boot with systemd.unified_cgroup_hierarchy=1", "version 1: no pressure (PSI), no memory QoS, and Kubernetes gives it up"))
	}
	if lacks := tree.Lacks("cpu", "memory", "pids"); len(lacks) > 0 {
		out = append(out, fail("boot with cgroup_enable=memory, and delegate the controllers if this is a container", "no controller for %s", list(lacks)))
	}
	if lacks := tree.Lacks("cpuset", "hugetlb"); len(lacks) > 0 {
		out = append(out, warn("use a kernel built with them, if pods shall have CPUs or huge pages of their own", "no controller for %s", list(lacks)))
	}
	if out == nil {
		out = one(ok("version 2, all controllers"))
	}
	return out
}

func nftables(Where) []Result {
	conn, err := nft.Open()
	if err != nil {
		return one(fail("modprobe nf_tables", "%v", err))
	}
	defer conn.Close()
	if err := conn.Missing(nft.IPv4); err != nil {
		return one(fail("", "%v", err))
	}
	if err := conn.Missing(nft.IPv6); err != nil {
		return one(warn("", "for IPv6: %v", err))
	}
	return one(ok("all expressions of the service proxy, IPv4 and IPv6"))
}
