package cri

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func statusField(text, key string) string {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func TestIdentityAndRights(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)

	c := config("defaults", "cat /proc/self/status; echo HOME=$HOME HOST=$HOSTNAME IMG=$FROM_IMAGE; hostname; id")
	c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	text := n.output(pod, box, c)
	for key, want := range map[string]string{"CapEff": "00000000a80425fb", "CapBnd": "00000000a80425fb", "CapAmb": "0000000000000000", "NoNewPrivs": "0", "Seccomp": "2"} {
		if got := statusField(text, key); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
	if !strings.Contains(text, "HOME=/root HOST=pod1 IMG=yes\npod1\nuid=0(root) gid=0(root)") {
		t.Errorf("environment: %s", text[strings.Index(text, "HOME"):])
	}

	c = config("alice", "cat /proc/self/status; id; echo HOME=$HOME")
	sc := c.Linux.SecurityContext
	sc.RunAsUsername, sc.NoNewPrivs, sc.SupplementalGroups = "alice", true, []int64{4242}
	sc.Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}
	text = n.output(pod, box, c)
	for key, want := range map[string]string{"CapBnd": "0000000000000400", "CapEff": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "0", "Uid": "1001\t1001\t1001\t1001"} {
		if got := statusField(text, key); got != want {
			t.Errorf("alice: %s is %s, want %s", key, got, want)
		}
	}
	if !strings.Contains(text, "uid=1001(alice) gid=1001(alice) groups=50(staff),1001(alice),4242") && !strings.Contains(text, "groups=1001(alice),50(staff),4242") {
		t.Errorf("alice: %s", text[strings.Index(text, "uid="):])
	}
	if !strings.Contains(text, "HOME=/home/alice") {
		t.Errorf("HOME of alice: %s", text)
	}

	c = config("strict", "id")
	c.Metadata.Attempt = 1
	c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1001}
	c.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 7}
	c.Linux.SecurityContext.SupplementalGroups = []int64{9}
	c.Linux.SecurityContext.SupplementalGroupsPolicy = cri.SupplementalGroupsPolicy_Strict
	id := n.create(pod, box, c)
	if u := n.status(id).User.Linux; u.Uid != 1001 || u.Gid != 7 || len(u.SupplementalGroups) != 2 {
		t.Errorf("strict: %v", u)
	}

	c = config("privileged", "cat /proc/self/status; ls /dev | wc -l; touch /proc/sys/kernel/.x 2>/dev/null; mount -t tmpfs x /tmp && echo mounted")
	c.Linux.SecurityContext.Privileged = true
	text = n.output(pod, box, c)
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	if got := statusField(text, "CapEff"); got != statusField(string(own), "CapEff") {
		t.Errorf("privileged: CapEff %s, ours %s", got, statusField(string(own), "CapEff"))
	}
	if !strings.Contains(text, "mounted") {
		t.Errorf("privileged cannot mount: %s", text)
	}
}

func TestFilesystemRules(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	host := filepath.Join(n.dir, "host")
	if err := os.MkdirAll(host, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(host, "f"), []byte("from host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(n.dir, "missing", "dir")
	c := config("rules", `
touch /x 2>/dev/null && echo root-writable
cat /proc/kcore >/dev/null 2>&1; [ -s /proc/kcore ] && echo kcore
cat /masked/f 2>/dev/null
touch /ro/x 2>/dev/null && echo ro-writable
touch /rw/made
touch /missing/made
cat /etc/resolv.conf /etc/hostname /one
echo 1 2>/dev/null > /proc/sys/net/ipv4/ip_forward && echo sysctl-writable
grep -c . /etc/hosts
df -k /dev/shm | tail -1
stat -c %a /tmp /dev/shm
ls -l /dev/null /dev/stdin | head -2
`)
	sc := c.Linux.SecurityContext
	sc.ReadonlyRootfs = true
	sc.MaskedPaths, sc.ReadonlyPaths = []string{"/proc/kcore", "/masked", "/proc/nothing"}, []string{"/proc/sys", "/proc/absent"}
	c.Mounts = []*cri.Mount{
		{ContainerPath: "/masked", HostPath: host}, {ContainerPath: "/ro", HostPath: host, Readonly: true}, {ContainerPath: "/rw", HostPath: host},
		{ContainerPath: "/missing", HostPath: missing}, {ContainerPath: "/one", HostPath: filepath.Join(host, "f"), Readonly: true},
	}
	text := n.output(pod, box, c)
	for _, bad := range []string{"root-writable", "kcore\n", "ro-writable", "sysctl-writable"} {
		if strings.Contains(text, bad) {
			t.Errorf("%s: %s", bad, text)
		}
	}
	if !strings.Contains(text, "search svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\npod1\nfrom host\n") || strings.Count(text, "from host") != 1 {
		t.Errorf("files: %s", text)
	}
	if !strings.Contains(text, "65536") || !strings.Contains(text, "1777\n1777\n") {
		t.Errorf("shm: %s", text)
	}
	for _, f := range []string{filepath.Join(host, "made"), filepath.Join(missing, "made")} {
		if _, err := os.Stat(f); err != nil {
			t.Error(err)
		}
	}
	s, err := n.cri.ListContainers(n.ctx(), &cri.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got := n.status(s.Containers[0].Id).Mounts; len(got) != 5 {
		t.Errorf("status shows %d mounts", len(got))
	}
}

// TestPropagation: host to container and both ways, seen from both sides.
func TestPropagation(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	host := filepath.Join(n.dir, "shared")
	for _, d := range []string{"", "down", "up"} {
		if err := os.MkdirAll(filepath.Join(host, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(unix.Mount(host, host, "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(host, unix.MNT_DETACH) })
	must(unix.Mount("", host, "", unix.MS_SHARED, ""))
	start := func(name string, p cri.MountPropagation) string {
		c := config(name, "sleep 1000")
		c.Linux.SecurityContext.Privileged = true
		c.Mounts = []*cri.Mount{{ContainerPath: "/m", HostPath: host, Propagation: p}}
		return n.run(pod, box, c)
	}
	private := start("private", cri.MountPropagation_PROPAGATION_PRIVATE)
	slave := start("slave", cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER)
	shared := start("shared", cri.MountPropagation_PROPAGATION_BIDIRECTIONAL)
	must(unix.Mount("tmpfs", filepath.Join(host, "down"), "tmpfs", 0, ""))
	must(os.WriteFile(filepath.Join(host, "down", "seen"), nil, 0o644))
	for id, want := range map[string]string{private: "", slave: "seen\n", shared: "seen\n"} {
		if got := n.sh(id, "ls /m/down"); got != want {
			t.Errorf("%s: a host mount shows %q, want %q", n.status(id).Metadata.Name, got, want)
		}
	}
	n.sh(shared, "mount -t tmpfs x /m/up && touch /m/up/fromcontainer")
	n.sh(slave, "mkdir -p /m/own; true")
	if _, err := os.Stat(filepath.Join(host, "up", "fromcontainer")); err != nil {
		t.Errorf("a mount of a bidirectional container is not seen on the host: %v", err)
	}
	must(unix.Unmount(filepath.Join(host, "up"), 0))
	must(unix.Unmount(filepath.Join(host, "down"), 0))
}

func TestNamespaceModes(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	one := config("one", "sleep 4321")
	one.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	two := config("two", "sleep 1000")
	two.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	a, b := n.run(pod, box, one), n.run(pod, box, two)
	if out := n.sh(b, "ps"); !strings.Contains(out, "sleep 4321") || !strings.Contains(out, "/pause") {
		t.Errorf("a shared pid namespace shows\n%s", out)
	}
	n.sh(a, "(setsid sleep 0.05 &) ; true") // an orphan, to be reaped by the pod's init
	n.until("orphan to be reaped", func() bool { return !strings.Contains(n.sh(b, "ps"), "[sleep]") })
	alone := n.run(pod, box, config("alone", "sleep 1000"))
	if out := n.sh(alone, "ps"); strings.Contains(out, "4321") {
		t.Errorf("an own pid namespace shows\n%s", out)
	}
	debug := config("debug", "sleep 1000")
	debug.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: alone}
	if out := n.sh(n.run(pod, box, debug), "ps"); strings.Count(out, "sleep 1000") != 2 || strings.Contains(out, "4321") {
		t.Errorf("the target's pid namespace shows\n%s", out)
	}
	hostBox := n.podConfig()
	hostBox.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_NODE, Ipc: cri.NamespaceMode_NODE}
	hostPod := n.runPod(hostBox)
	host := config("host", "ip addr; readlink /proc/self/ns/ipc; ps | wc -l; hostname")
	host.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_NODE
	out := n.output(hostPod, hostBox, host)
	ipc, err := os.Readlink("/proc/self/ns/ipc")
	if err != nil {
		t.Fatal(err)
	}
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"wn0", ipc, name} {
		if !strings.Contains(out, want) {
			t.Errorf("host namespaces: %q is missing in\n%s", want, out)
		}
	}
}

func TestSysctls(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	box.Linux.Sysctls = map[string]string{"net.core.somaxconn": "777", "kernel.shm_rmid_forced": "1"}
	pod := n.runPod(box)
	out := n.output(pod, box, config("see", "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start"))
	if out != "777\n1\n0\n" {
		t.Errorf("sysctls: %q", out)
	}
	bad := n.podConfig()
	bad.Linux.Sysctls = map[string]string{"vm.swappiness": "1"}
	if _, err := n.cri.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: bad}); err == nil || !strings.Contains(err.Error(), "vm.swappiness") {
		t.Errorf("a node-wide sysctl: %v", err)
	}
}

func TestLimitsInCgroup(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	c := config("limited", "sleep 1000")
	c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 204, CpuQuota: 25000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 900}
	id := n.run(pod, box, c)
	read := func(paths ...string) string {
		t.Helper()
		for _, p := range paths {
			matches, _ := filepath.Glob(p)
			for _, m := range matches {
				if text, err := os.ReadFile(m); err == nil {
					return strings.TrimSpace(string(text))
				}
			}
		}
		t.Errorf("none of %v can be read", paths)
		return ""
	}
	at := "/wn-test-" + filepath.Base(n.dir) + "/" + pod + "/" + id
	if got := read("/sys/fs/cgroup/memory"+at+"/memory.limit_in_bytes", "/sys/fs/cgroup"+at+"/memory.max"); got != "67108864" {
		t.Errorf("memory limit %s", got)
	}
	if got := read("/sys/fs/cgroup/cpu*"+at+"/cpu.cfs_quota_us", "/sys/fs/cgroup"+at+"/cpu.max"); !strings.HasPrefix(got, "25000") {
		t.Errorf("cpu quota %s", got)
	}
	if got := n.sh(id, "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max"); got != "67108864\n" {
		t.Errorf("the container sees a memory limit of %s", got)
	}
	if got := n.sh(id, "cat /proc/1/oom_score_adj"); got != "900\n" {
		t.Errorf("oom_score_adj %s", got)
	}
	if _, err := n.cri.UpdateContainerResources(n.ctx(), &cri.UpdateContainerResourcesRequest{ContainerId: id, Linux: &cri.LinuxContainerResources{CpuQuota: 50000}}); err != nil {
		t.Fatal(err)
	}
	if got := read("/sys/fs/cgroup/cpu*"+at+"/cpu.cfs_quota_us", "/sys/fs/cgroup"+at+"/cpu.max"); !strings.HasPrefix(got, "50000") {
		t.Errorf("cpu quota after the update %s", got)
	}
	if r := n.status(id).Resources.Linux; r.CpuQuota != 50000 || r.MemoryLimitInBytes != 64<<20 {
		t.Errorf("status shows %v", r)
	}
	n.sh(id, "dd if=/dev/zero of=/big bs=1M count=3 2>/dev/null")
	st, err := n.cri.ContainerStats(n.ctx(), &cri.ContainerStatsRequest{ContainerId: id})
	if err != nil || st.Stats.Cpu.UsageCoreNanoSeconds.GetValue() == 0 || st.Stats.Memory.WorkingSetBytes.GetValue() == 0 || st.Stats.WritableLayer.UsedBytes.GetValue() < 3<<20 {
		t.Errorf("stats %v %v", st, err)
	}
	ps, err := n.cri.PodSandboxStats(n.ctx(), &cri.PodSandboxStatsRequest{PodSandboxId: pod})
	if err != nil || ps.Stats.Linux.Process.ProcessCount.GetValue() == 0 || len(ps.Stats.Linux.Containers) != 1 || ps.Stats.Linux.Network.GetDefaultInterface().GetName() != "eth0" {
		t.Errorf("pod stats %v %v", ps, err)
	}
}
