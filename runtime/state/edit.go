package state

import "github.com/opencontainers/runtime-spec/specs-go"

// Edit is a change to a container's OCI spec that came from outside of CRI: devices of CDI, adjustments of NRI. It is
// decided once, when the container is created, and part of its record, so that the start, every exec and a restart of
// ours see the same container.
type Edit struct {
	Add    specs.Spec // what it sets or adds; only the parts that plan.Apply knows
	Remove Removals   `json:",omitzero"` // goes first
}

// Removals name what an Edit takes away.
type Removals struct {
	Annotations, Env, Mounts, Devices, Sysctls []string                   `json:",omitempty"` // keys, variables, destinations, paths, names
	Namespaces                                 []specs.LinuxNamespaceType `json:",omitempty"`
	Rdt                                        bool                       `json:",omitempty"`
}
