// Package state holds the nouns of the runtime, the table of a container's states, and the store that keeps both on
// tmpfs. Values handed out are snapshots: nobody changes them, a change is a copy that is put back.
package state

import (
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// SandboxState is Ready until StopPodSandbox begins to take the sandbox apart.
type SandboxState string

const (
	Ready    SandboxState = "ready"
	NotReady SandboxState = "notready" // stopped, or only half made: nothing may start in it
)

// Sandbox is a pod's share of the node: pinned namespaces, addresses, a few files and a cgroup parent. No process.
type Sandbox struct {
	Version int
	ID      string
	State   SandboxState
	Created time.Time
	Handler string `json:",omitempty"`
	Config  *cri.PodSandboxConfig

	Hostname     string   // what the uts namespace and HOSTNAME say; the node's own name with a host network
	CgroupParent string   // cgroup path that holds the containers' groups
	OwnCgroup    bool     `json:",omitempty"` // we made CgroupParent, because the request named none
	HostNetwork  bool     `json:",omitempty"`
	HostIPC      bool     `json:",omitempty"`
	IPs          []string `json:",omitempty"`
	Network      string   `json:",omitempty"` // what connected it: bridge:NAME or cni:NAME; it also disconnects it
	HostPorts    bool     `json:",omitempty"` // its host ports are in our own table, no plugin serves them
	NetworkDone  bool     `json:",omitempty"` // the network was released, IPs are history
	Pause        string   `json:",omitempty"` // process id in the monitor of the pod-wide pid namespace's init
	PausePid     int      `json:",omitempty"`
}

// Meta is the request's metadata, never nil.
func (s *Sandbox) Meta() *cri.PodSandboxMetadata {
	if m := s.Config.GetMetadata(); m != nil {
		return m
	}
	return &cri.PodSandboxMetadata{}
}

// Name is the key by which a repeated RunPodSandbox is recognised.
func (s *Sandbox) Name() string { return SandboxName(s.Config) }

// SandboxName builds the key from a request.
func SandboxName(c *cri.PodSandboxConfig) string {
	m := c.GetMetadata()
	return m.GetName() + "\x00" + m.GetNamespace() + "\x00" + m.GetUid() + "\x00" + itoa(m.GetAttempt())
}
