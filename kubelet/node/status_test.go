package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func quantities(list v1.ResourceList) string {
	var out []string
	for _, name := range []v1.ResourceName{"cpu", "memory", "ephemeral-storage", "pods", "hugepages-2Mi"} {
		if q, ok := list[name]; ok {
			out = append(out, fmt.Sprintf("%s=%s", name, q.String()))
		}
	}
	return strings.Join(out, " ")
}

func TestCapacityAndAllocatable(t *testing.T) {
	facts := Facts{CPUs: 4, Memory: 8 << 30, Storage: 100 << 30, HugePages: map[string]int64{"2Mi": 1 << 30}}
	for _, c := range []struct {
		name     string
		reserved v1.ResourceList
		capacity string
		free     string
	}{
		{"nothing reserved", nil,
			"cpu=4 memory=8Gi ephemeral-storage=100Gi pods=50 hugepages-2Mi=1Gi",
			"cpu=4 memory=7068Mi ephemeral-storage=90Gi pods=50 hugepages-2Mi=1Gi"},
		{"something reserved", v1.ResourceList{"cpu": resource.MustParse("250m"), "memory": resource.MustParse("68Mi"), "foreign/thing": resource.MustParse("1")},
			"cpu=4 memory=8Gi ephemeral-storage=100Gi pods=50 hugepages-2Mi=1Gi",
			"cpu=3750m memory=7000Mi ephemeral-storage=90Gi pods=50 hugepages-2Mi=1Gi"},
		{"more than there is", v1.ResourceList{"memory": resource.MustParse("1Ti")},
			"cpu=4 memory=8Gi ephemeral-storage=100Gi pods=50 hugepages-2Mi=1Gi",
			"cpu=4 memory=0 ephemeral-storage=90Gi pods=50 hugepages-2Mi=1Gi"},
	} {
		kept := resource.MustParse("100Mi")
		cfg := Config{MaxPods: 50, Reserved: c.reserved, Kept: map[v1.ResourceName]Threshold{"memory": {Amount: &kept}, "ephemeral-storage": {Percent: 10}}}
		if got := quantities(capacity(cfg, facts)); got != c.capacity {
			t.Errorf("%s: capacity %s, want %s", c.name, got, c.capacity)
		}
		if got := quantities(allocatable(cfg, facts)); got != c.free {
			t.Errorf("%s: allocatable %s, want %s", c.name, got, c.free)
		}
	}
}

func TestConditionsKeepTheirTransitionTimes(t *testing.T) {
	t0, t1 := time.Unix(1000, 0), time.Unix(2000, 0)
	was := statusOf(Config{}, Facts{}, Runtime{}, pressure{}, nil, nil, t0)
	now := statusOf(Config{}, Facts{}, Runtime{Problem: "no network"}, pressure{disk: true}, nil, was.Conditions, t1)
	for kind, want := range map[v1.NodeConditionType]string{
		v1.NodeReady:          "False KubeletNotReady no network 2000",
		v1.NodeDiskPressure:   "True KubeletHasDiskPressure kubelet has disk pressure 2000",
		v1.NodeMemoryPressure: "False KubeletHasSufficientMemory kubelet has sufficient memory available 1000",
		v1.NodePIDPressure:    "False KubeletHasSufficientPID kubelet has sufficient PID available 1000",
	} {
		c := find(now.Conditions, kind)
		if got := fmt.Sprint(c.Status, " ", c.Reason, " ", c.Message, " ", c.LastTransitionTime.Unix()); got != want {
			t.Errorf("%s: %s, want %s", kind, got, want)
		}
		if c.LastHeartbeatTime.Unix() != 2000 {
			t.Errorf("%s: no heartbeat", kind)
		}
	}
	later := statusOf(Config{}, Facts{}, Runtime{}, pressure{}, nil, was.Conditions, t1)
	if !sameStatus(later, was) || sameStatus(now, was) {
		t.Error("only heartbeats may be overlooked")
	}
	if r := eventReason(*find(now.Conditions, v1.NodeDiskPressure)); r != "NodeHasDiskPressure" {
		t.Error(r)
	}
}

func TestPressureStaysForFiveMinutes(t *testing.T) {
	var p pressure
	at := func(s int) time.Time { return time.Unix(int64(10000+s), 0) }
	for _, step := range []struct {
		sec        int
		seen, want bool
	}{{0, false, false}, {10, true, true}, {20, false, true}, {200, true, true}, {499, false, true}, {500, false, false}} {
		if p.update(at(step.sec), false, step.seen, false); p.disk != step.want || p.memory || p.pids {
			t.Fatalf("after %d s: %+v", step.sec, p)
		}
	}
}

func TestRuntimeProblems(t *testing.T) {
	cond := func(kind string, ok bool) *cri.RuntimeCondition {
		return &cri.RuntimeCondition{Type: kind, Status: ok, Reason: "R", Message: "m"}
	}
	for want, s := range map[string]*cri.RuntimeStatus{
		"": {Conditions: []*cri.RuntimeCondition{cond("RuntimeReady", true), cond("NetworkReady", true), cond("Other", false)}},
		"container runtime network not ready: NetworkReady=false reason:R message:m": {Conditions: []*cri.RuntimeCondition{cond("RuntimeReady", true), cond("NetworkReady", false)}},
		"container runtime not ready: the runtime does not report RuntimeReady":      {Conditions: []*cri.RuntimeCondition{cond("NetworkReady", true)}},
	} {
		if got := problem(s); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestFiftyLargestImages(t *testing.T) {
	var images []v1.ContainerImage
	for i := range 80 {
		images = append(images, v1.ContainerImage{Names: []string{fmt.Sprint(i)}, SizeBytes: int64(i) << 20})
	}
	got := largest(images, imagesMost)
	if len(got) != 50 || got[0].Names[0] != "79" || got[49].Names[0] != "30" {
		t.Fatalf("%d images, first %v", len(got), got[0])
	}
}

func TestPatchReplacesAddressesAndDropsWhatIsGone(t *testing.T) {
	said := v1.NodeStatus{Capacity: v1.ResourceList{"hugepages-2Mi": resource.MustParse("0"), "cpu": resource.MustParse("1")}}
	want := v1.NodeStatus{Capacity: v1.ResourceList{"cpu": resource.MustParse("2")}, Addresses: []v1.NodeAddress{{Type: "InternalIP", Address: "10.0.0.1"}}}
	raw, err := statusPatch(want, said)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{`"addresses":[{"$patch":"replace"},{"address":"10.0.0.1","type":"InternalIP"}]`, `"capacity":{"cpu":"2","hugepages-2Mi":null}`, `"images":null`} {
		if !strings.Contains(string(raw), part) {
			t.Errorf("no %s in %s", part, raw)
		}
	}
}

func TestFactsAreThisMachines(t *testing.T) {
	f := ReadFacts(t.TempDir())
	uname, err := exec.Command("uname", "-r").Output()
	if err != nil {
		t.Fatal(err)
	}
	if f.Kernel != strings.TrimSpace(string(uname)) || f.BootID == "" || f.OSImage == "" || f.CPUs < 1 || f.Memory < 64<<20 || f.Storage == 0 {
		t.Fatalf("%+v", f)
	}
	if left := pidsLeft(); left < 1 || left == 1<<30 {
		t.Fatalf("pids left %d", left)
	}
}

func TestHugePages(t *testing.T) {
	dir := t.TempDir()
	for name, n := range map[string]string{"hugepages-2048kB": "16\n", "hugepages-1048576kB": "0\n", "other": "1"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "nr_hugepages"), []byte(n), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprint(hugePages(dir)); got != "map[1Gi:0 2Mi:33554432]" {
		t.Fatal(got)
	}
}

func TestRebootForgetsOnlyReady(t *testing.T) {
	got := notReady([]v1.NodeCondition{{Type: v1.NodeReady, Status: v1.ConditionTrue}, {Type: v1.NodeDiskPressure, LastTransitionTime: metav1.Unix(1, 0)}})
	if len(got) != 1 || got[0].Type != v1.NodeDiskPressure {
		t.Fatalf("%+v", got)
	}
}
