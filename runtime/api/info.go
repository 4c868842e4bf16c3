package api

import (
	"encoding/json"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"worknode/runtime/state"
)

// Info is what the verbose status of an object shows beside CRI's own fields. crictl prints it, and people's scripts read
// info.pid and info.runtimeSpec, so these have the names and places they have with other runtimes.
type Info struct {
	SandboxID   string          `json:"sandboxID,omitempty"`
	Pid         int             `json:"pid"` // 0: no process; a sandbox has one only for a shared pid namespace
	RuntimeType string          `json:"runtimeType"`
	Image       string          `json:"image,omitempty"`
	Layers      []string        `json:"layers,omitempty"`
	Cgroup      string          `json:"cgroup,omitempty"`
	LogPath     string          `json:"logPath,omitempty"`
	Config      json.RawMessage `json:"config,omitempty"`
	RuntimeSpec *specs.Spec     `json:"runtimeSpec,omitempty"`
}

// native is the only handler there is.
const native = "worknode.native"

func containerInfo(c *state.Container, spec *specs.Spec) (map[string]string, error) {
	return verbose(Info{SandboxID: c.Sandbox, Pid: c.Pid, RuntimeType: native, Image: c.ImageID, Layers: c.Layers, Cgroup: c.Cgroup, LogPath: c.LogPath, RuntimeSpec: spec}, c.Config)
}

func sandboxInfo(s *state.Sandbox, namespaces []specs.LinuxNamespace) (map[string]string, error) {
	spec := &specs.Spec{Version: specs.Version, Hostname: s.Hostname, Linux: &specs.Linux{CgroupsPath: s.CgroupParent, Namespaces: namespaces}}
	return verbose(Info{Pid: s.PausePid, RuntimeType: native, Cgroup: s.CgroupParent, RuntimeSpec: spec}, s.Config)
}

func verbose(info Info, config proto.Message) (map[string]string, error) {
	var err error
	if info.Config, err = protojson.Marshal(config); err != nil {
		return nil, err
	}
	text, err := json.Marshal(info)
	if err != nil {
		return nil, err
	}
	return map[string]string{"info": string(text)}, nil
}
