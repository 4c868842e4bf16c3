package cri

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type info struct {
	SandboxID   string
	Pid         int
	Config      map[string]any
	RuntimeSpec *specs.Spec
}

func parse(t *testing.T, m map[string]string) (out info) {
	t.Helper()
	if err := json.Unmarshal([]byte(m["info"]), &out); err != nil {
		t.Fatalf("info %q: %v", m["info"], err)
	}
	return out
}

// TestVerboseStatus reads what scripts read from crictl inspect, inspectp and info.
func TestVerboseStatus(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	id := n.run(pod, box, config("c", "sleep 1000"))
	status, err := n.cri.ContainerStatus(n.ctx(), &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	c := parse(t, status.Info)
	if text, err := os.ReadFile("/proc/" + itoa(c.Pid) + "/cmdline"); err != nil || !strings.HasPrefix(string(text), "sh\x00") && !strings.HasPrefix(string(text), "sleep\x00") {
		t.Errorf("info.pid %d is %q, %v", c.Pid, text, err)
	}
	if c.SandboxID != pod || c.RuntimeSpec == nil || strings.Join(c.RuntimeSpec.Process.Args, " ") != "sh -c sleep 1000" {
		t.Errorf("container info %+v", c)
	}
	sandbox, err := n.cri.PodSandboxStatus(n.ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	s := parse(t, sandbox.Info)
	if s.Config["hostname"] != box.Hostname {
		t.Errorf("sandbox config %v", s.Config)
	}
	paths := map[specs.LinuxNamespaceType]string{}
	for _, ns := range s.RuntimeSpec.Linux.Namespaces {
		paths[ns.Type] = ns.Path
	}
	for _, kind := range []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace} {
		if paths[kind] == "" {
			t.Errorf("no path for the %s namespace in %v", kind, paths)
		}
	}
	if status, err = n.cri.ContainerStatus(n.ctx(), &cri.ContainerStatusRequest{ContainerId: id}); err != nil || status.Info != nil {
		t.Errorf("info unasked for: %v %v", status.GetInfo(), err)
	}
	runtime, err := n.cri.Status(n.ctx(), &cri.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var told map[string]any
	if err := json.Unmarshal([]byte(runtime.Info["config"]), &told); err != nil || told["cgroupDriver"] != "cgroupfs" || !strings.HasPrefix(told["root"].(string), n.dir) {
		t.Errorf("config %v %v", told, err)
	}
}
