package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/mount"
)

func open(t *testing.T) (*Tree, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("making cgroups needs root; run these tests as root")
	}
	tree, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	group := fmt.Sprintf("/worknode-test-cg%d-%s", os.Getpid(), strings.ToLower(t.Name()))
	t.Cleanup(func() {
		if err := tree.Kill(group); err != nil {
			t.Error(err)
		}
		if err := tree.Remove(group); err != nil {
			t.Error(err)
		}
		if left, _ := tree.Under(group); len(left) > 0 {
			t.Errorf("left over: %v", left)
		}
	})
	return tree, group
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func ptr(n int64) *int64 { return &n }

func TestLimitsAreInTheKernel(t *testing.T) {
	tree, group := open(t)
	sub := group + "/pod/c"
	set := func(r Resources) {
		t.Helper()
		if err := tree.Make(sub, r); err != nil {
			t.Fatal(err)
		}
	}
	want := func(v1controller, v1, v2, value1, value2 string) {
		t.Helper()
		name, value := v1, value1
		if tree.V2() {
			name, value = v2, value2
		}
		dir, err := tree.dir(v1controller, sub)
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, dir, name); got != value {
			t.Errorf("%s is %q, want %q", name, got, value)
		}
	}
	set(Resources{CPUShares: 1024, CPUQuota: 50000, CPUPeriod: 100000, Memory: ptr(64 << 20), MemorySwap: ptr(64 << 20), Pids: ptr(7)})
	want("cpu", "cpu.shares", "cpu.weight", "1024", "39")
	want("cpu", "cpu.cfs_quota_us", "cpu.max", "50000", "50000 100000")
	want("memory", "memory.limit_in_bytes", "memory.max", "67108864", "67108864")
	want("pids", "pids.max", "pids.max", "7", "7")
	// Raising both memory limits and lowering them again needs two different orders on v1.
	set(Resources{Memory: ptr(128 << 20), MemorySwap: ptr(128 << 20)})
	want("memory", "memory.limit_in_bytes", "memory.max", "134217728", "134217728")
	want("cpu", "cpu.shares", "cpu.weight", "1024", "39") // untouched
	set(Resources{Memory: ptr(32 << 20), MemorySwap: ptr(32 << 20)})
	want("memory", "memory.limit_in_bytes", "memory.max", "33554432", "33554432")
	set(Resources{CPUQuota: -1, Pids: ptr(-1), Memory: ptr(-1), MemorySwap: ptr(-1)})
	want("cpu", "cpu.cfs_quota_us", "cpu.max", "-1", "max 100000")
	want("pids", "pids.max", "pids.max", "max", "max")
	stats, err := tree.Stats(sub)
	if err != nil || stats.MemoryLimit != 0 {
		t.Errorf("stats %+v (%v), want no memory limit", stats, err)
	}
}

// Upstream's kubelet forbids every size of huge pages to every container, whether or not the kernel counts them.
func TestForbiddenHugePagesNeedNoController(t *testing.T) {
	tree, group := open(t)
	none := Resources{Hugepages: map[string]uint64{"2MB": 0}}
	if err := tree.Make(group+"/none", none); err != nil {
		t.Errorf("no huge pages: %v", err)
	}
	if len(tree.Lacks("hugetlb")) == 0 {
		return
	}
	some := Resources{Hugepages: map[string]uint64{"2MB": 2 << 20}}
	if err := tree.Make(group+"/some", some); err == nil {
		t.Error("huge pages were granted that nobody counts")
	}
}

func TestProcessesAreCountedKilledAndRemoved(t *testing.T) {
	tree, group := open(t)
	if err := tree.Make(group+"/a/b", Resources{}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", "read x; i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; sleep 1000 & echo up; wait")
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	for _, f := range tree.ProcsFiles(group + "/a/b") {
		if err := os.WriteFile(f, []byte(fmt.Sprint(cmd.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Fprintln(in)
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	go func() { ended <- cmd.Wait() }()
	pids, err := tree.Procs(group)
	if err != nil || len(pids) != 2 || !slices.Contains(pids, cmd.Process.Pid) {
		t.Errorf("processes %v (%v), want the shell and its sleep", pids, err)
	}
	stats, err := tree.Stats(group + "/a/b")
	if err != nil || stats.CPUNanos == 0 || stats.MemoryUsage == 0 || stats.Pids != 2 {
		t.Errorf("stats %+v (%v)", stats, err)
	}
	if err := tree.Remove(group); err == nil {
		t.Error("a group with processes was removed")
	} else if !fault.Is(err, fault.Busy) {
		t.Errorf("remove: %v, want busy", err)
	}
	if err := tree.Kill(group); err != nil {
		t.Fatal(err)
	}
	<-ended
	if pids, _ := tree.Procs(group); len(pids) > 0 {
		t.Errorf("processes %v survive Kill", pids)
	}
	under, err := tree.Under(group)
	if err != nil || !slices.Equal(under, []string{group + "/a", group + "/a/b"}) {
		t.Errorf("under: %v (%v)", under, err)
	}
	for range 2 {
		if err := tree.Remove(group); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tree.Procs(group); !fault.Is(err, fault.NotFound) {
		t.Errorf("processes of nothing: %v", err)
	}
	if _, err := tree.Stats(group); !fault.Is(err, fault.NotFound) {
		t.Errorf("stats of nothing: %v", err)
	}
	if err := tree.Kill(group); err != nil {
		t.Errorf("kill nothing: %v", err)
	}
}

func TestForeignPathsAreRefused(t *testing.T) {
	tree, _ := open(t)
	for _, p := range []string{"", "/", "/a/../..", "/../x", "x\x00y"} {
		if p != "/" {
			if err := tree.Make(p, Resources{}); !fault.Is(err, fault.Invalid) {
				t.Errorf("make %q: %v", p, err)
			}
		}
		if err := tree.Remove(p); !fault.Is(err, fault.Invalid) {
			t.Errorf("remove %q: %v", p, err)
		}
		if err := tree.Kill(p); !fault.Is(err, fault.Invalid) {
			t.Errorf("kill %q: %v", p, err)
		}
	}
}

func TestWeight(t *testing.T) {
	for shares, want := range map[uint64]uint64{0: 1, 2: 1, 1024: 39, 2048: 79, 262144: 10000, 1 << 40: 10000} {
		if got := Weight(shares); got != want {
			t.Errorf("Weight(%d) = %d, want %d", shares, got, want)
		}
	}
}

func TestFindTellsV1V2AndHybrid(t *testing.T) {
	v1 := []mount.Point{{Type: "cgroup", Path: "/c/cpu,cpuacct", SuperOptions: "rw,cpu,cpuacct"}, {Type: "cgroup", Path: "/c/memory", SuperOptions: "rw,memory"},
		{Type: "cgroup", Path: "/c/systemd", SuperOptions: "rw,xattr,name=systemd"}}
	v2 := mount.Point{Type: "cgroup2", Path: "/sys/fs/cgroup", SuperOptions: "rw"}
	for _, tc := range []struct {
		name   string
		points []mount.Point
		v2     bool
		files  []string
	}{
		{"v2", []mount.Point{v2}, true, []string{"/sys/fs/cgroup/g/cgroup.procs"}},
		{"v1", v1, false, []string{"/c/cpu,cpuacct/g/cgroup.procs", "/c/memory/g/cgroup.procs"}},
		{"hybrid", append(v1, v2), false, []string{"/c/cpu,cpuacct/g/cgroup.procs", "/c/memory/g/cgroup.procs"}},
	} {
		tree, err := find(tc.points)
		if err != nil || tree.V2() != tc.v2 || !slices.Equal(tree.ProcsFiles("/g"), tc.files) {
			t.Errorf("%s: %v (%v)", tc.name, tree, err)
		}
	}
	if _, err := find(nil); !fault.Is(err, fault.Unsupported) {
		t.Errorf("no hierarchy: %v", err)
	}
}

// devices runs in a group with rules and reports which nodes could be opened.
func devices(t *testing.T, join string, nodes ...string) string {
	t.Helper()
	script := "echo $$ > " + join + "; for n in " + strings.Join(nodes, " ") + "; do (true < $n) 2>&-; echo -n $?; (true > $n) 2>&-; echo -n $?' '; done"
	out, err := exec.Command("/bin/sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return strings.NewReplacer("2", "1").Replace(strings.TrimSpace(string(out)))
}

// rules: nothing but full, and zero read-only; then null by its type alone; the last one takes urandom's right to write.
var rules = []Device{
	{Allow: false, Type: "a", Major: -1, Minor: -1},
	{Allow: true, Type: "c", Major: 1, Minor: 7, Access: "rwm"},
	{Allow: true, Type: "c", Major: 1, Minor: 5, Access: "r"},
	{Allow: true, Type: "c", Major: 1, Minor: 9},
	{Allow: false, Type: "c", Major: 1, Minor: 9, Access: "w"},
}

var nodes = []string{"/dev/full", "/dev/zero", "/dev/urandom", "/dev/null"}

const verdicts = "00 01 01 11" // read, write; 0: allowed

func TestDeviceRules(t *testing.T) {
	tree, group := open(t)
	if err := tree.Make(group, Resources{Devices: rules}); err != nil {
		t.Fatal(err)
	}
	dir, err := tree.dir("devices", group)
	if err != nil {
		t.Fatal(err)
	}
	// The subshells redirect from /dev/null nowhere: what cannot be opened is the node itself.
	if got := devices(t, dir+"/cgroup.procs", nodes...); got != verdicts {
		t.Errorf("verdicts %q, want %q", got, verdicts)
	}
}

// The BPF program of v2 works on a hybrid machine's v2 hierarchy too, so it is tested wherever there is one.
func TestDeviceProgram(t *testing.T) {
	points, err := mount.Table()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(points, func(p mount.Point) bool { return p.Type == "cgroup2" })
	if i < 0 {
		t.Fatal("no cgroup v2 is mounted anywhere; mount one to run this test")
	}
	dir := filepath.Join(points[i].Path, fmt.Sprintf("worknode-test-dev%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer unix.Rmdir(dir)
	if err := attachDevices(dir, []Device{{Allow: false, Type: "a", Major: -1, Minor: -1}}); err != nil {
		t.Fatal(err)
	}
	if got := devices(t, dir+"/cgroup.procs", nodes...); got != "11 11 11 11" {
		t.Errorf("with all denied: %q", got)
	}
	if err := attachDevices(dir, rules); err != nil { // replaces the first
		t.Fatal(err)
	}
	if got := devices(t, dir+"/cgroup.procs", nodes...); got != verdicts {
		t.Errorf("verdicts %q, want %q", got, verdicts)
	}
	for _, bad := range []Device{{Type: "x"}, {Type: "c", Access: "rz"}} {
		if err := attachDevices(dir, []Device{bad}); !fault.Is(err, fault.Invalid) {
			t.Errorf("rule %+v: %v, want invalid", bad, err)
		}
	}
}
