package cgroups

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"worknode/fault"
	"worknode/kernel/cgroup"
)

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Println("these tests make cgroups: run them as root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// tree opens pods below a group of this test's own and removes it afterwards.
func open(t *testing.T, facts Facts) (*Pods, string) {
	t.Helper()
	top := fmt.Sprintf("/wn-test-e1-%d", os.Getpid())
	p, err := Open(top+"/kubepods", facts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.tree.Remove(top); err != nil && !fault.Is(err, fault.NotFound) {
			t.Errorf("left behind: %v", err)
		}
		if found, _ := filepath.Glob("/sys/fs/cgroup/*" + top); len(found) > 0 {
			t.Errorf("left behind: %v", found)
		}
	})
	return p, top + "/kubepods"
}

func podOf(t *testing.T, uid, resources string) *v1.Pod {
	t.Helper()
	var pod v1.Pod
	if err := yaml.UnmarshalStrict([]byte("spec: {containers: [{name: c, resources: "+resources+"}]}"), &pod); err != nil {
		t.Fatal(err)
	}
	pod.Name, pod.Namespace, pod.UID = uid, "shop", types.UID(uid)
	return &pod
}

// value reads what the kernel has, by the file's name on cgroup v1 or v2.
func value(t *testing.T, p *Pods, group, v1File, v2File string) string {
	t.Helper()
	path := "/sys/fs/cgroup" + group + "/" + v2File
	if !p.V2() {
		controller, _, _ := strings.Cut(v1File, ".")
		path = "/sys/fs/cgroup/" + controller + group + "/" + v1File
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func expect(t *testing.T, p *Pods, group, v1File, v2File, want1, want2 string) {
	t.Helper()
	want := want1
	if p.V2() {
		want = want2
	}
	if got := value(t, p, group, v1File, v2File); got != want {
		t.Errorf("%s %s|%s: %s, want %s", group, v1File, v2File, got, want)
	}
}

func TestPodsGetTheirBounds(t *testing.T) {
	p, root := open(t, Facts{
		Allocatable:  v1.ResourceList{"cpu": resource.MustParse("2"), "memory": resource.MustParse("512Mi")},
		PodPidsLimit: 123,
	})
	expect(t, p, root, "memory.limit_in_bytes", "memory.max", "536870912", "536870912")
	expect(t, p, root, "cpu.shares", "cpu.weight", "2048", "79")
	guaranteed := podOf(t, "g", `{limits: {cpu: 500m, memory: 64Mi}}`)
	burstable := podOf(t, "b", `{requests: {cpu: 250m}, limits: {memory: 32Mi}}`)
	effort := podOf(t, "e", `{}`)
	for _, c := range []struct {
		pod  *v1.Pod
		want string
	}{{guaranteed, root + "/podg"}, {burstable, root + "/burstable/podb"}, {effort, root + "/besteffort/pode"}} {
		got, err := p.Ensure(c.pod)
		if err != nil || got != c.want || p.Parent(c.pod) != c.want {
			t.Fatalf("%s: %s %v, want %s", c.pod.Name, got, err, c.want)
		}
		expect(t, p, got, "pids.max", "pids.max", "123", "123")
	}
	expect(t, p, root+"/podg", "cpu.shares", "cpu.weight", "512", "20")
	expect(t, p, root+"/podg", "cpu.cfs_quota_us", "cpu.max", "50000", "50000 100000")
	expect(t, p, root+"/podg", "memory.limit_in_bytes", "memory.max", "67108864", "67108864")
	expect(t, p, root+"/burstable/podb", "cpu.shares", "cpu.weight", "256", "10")
	expect(t, p, root+"/burstable/podb", "memory.limit_in_bytes", "memory.max", "33554432", "33554432")
	expect(t, p, root+"/burstable/podb", "cpu.cfs_quota_us", "cpu.max", "-1", "max 100000")
	expect(t, p, root+"/besteffort/pode", "cpu.shares", "cpu.weight", "2", "1")
	expect(t, p, root+"/besteffort", "cpu.shares", "cpu.weight", "2", "1")

	uids, err := p.List()
	if want := []types.UID{"b", "e", "g"}; err != nil || !slices.Equal(uids, want) {
		t.Errorf("List %v %v, want %v", uids, err, want)
	}
	for _, uid := range []types.UID{"b", "e", "g", "g", "never"} {
		if err := p.Remove(uid); err != nil {
			t.Errorf("remove %s: %v", uid, err)
		}
	}
	if uids, _ = p.List(); len(uids) != 0 {
		t.Errorf("left %v", uids)
	}
}

func TestBurstableTierWeighsWhatItsPodsAskFor(t *testing.T) {
	p, root := open(t, Facts{})
	tier := root + "/burstable"
	expect(t, p, tier, "cpu.shares", "cpu.weight", "2", "1")
	for i := range 3 {
		pod := podOf(t, fmt.Sprint("p", i), `{requests: {cpu: 500m}}`)
		for range 2 { // again is no more
			if _, err := p.Ensure(pod); err != nil {
				t.Fatal(err)
			}
		}
	}
	expect(t, p, tier, "cpu.shares", "cpu.weight", "1536", "59")
	again, err := Open(root, Facts{}) // a restarted kubelet learns it from the pods it is told of
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		expect(t, p, tier, "cpu.shares", "cpu.weight", "1536", "59")
		if _, err := again.Ensure(podOf(t, fmt.Sprint("p", i), `{requests: {cpu: 500m}}`)); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, p, tier, "cpu.shares", "cpu.weight", "1536", "59")
	for i := range 3 {
		if err := again.Remove(types.UID(fmt.Sprint("p", i))); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, p, tier, "cpu.shares", "cpu.weight", "2", "1")
}

func TestRemoveEndsWhatIsLeft(t *testing.T) {
	p, _ := open(t, Facts{})
	pod := podOf(t, "x", `{}`)
	parent, err := p.Ensure(pod)
	if err != nil {
		t.Fatal(err)
	}
	inner := parent + "/container"
	if err := p.tree.Make(inner, cgroup.Resources{}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), "sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for _, file := range p.tree.ProcsFiles(inner) {
		if err := os.WriteFile(file, []byte(fmt.Sprint(cmd.Process.Pid)), 0); err != nil {
			cmd.Process.Kill()
			t.Fatal(err)
		}
	}
	if err := p.Remove(pod.UID); err != nil {
		cmd.Process.Kill()
		t.Fatal(err)
	}
	<-ended
	if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGKILL {
		t.Errorf("it ended by %v", cmd.ProcessState)
	}
	if uids, _ := p.List(); len(uids) != 0 {
		t.Errorf("left %v", uids)
	}
}

func TestUIDCannotLeaveTheTree(t *testing.T) {
	p, _ := open(t, Facts{})
	if _, err := p.Ensure(podOf(t, "../../x", `{}`)); !fault.Is(err, fault.Invalid) {
		t.Errorf("%v", err)
	}
}
