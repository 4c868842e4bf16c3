package runtime

import (
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"worknode/runtime/state"
)

// Spec is the OCI spec that a container has or would get; nil when none can be made any more, such as after its target
// for the pid namespace has ended.
func (l *loop) Spec(c *state.Container) *specs.Spec {
	s, err := l.store.Sandbox(c.Sandbox)
	if err != nil {
		return nil
	}
	made, err := l.made(s, c)
	if err != nil {
		return nil
	}
	return made.Spec
}

// Namespaces are a sandbox's pinned namespaces, for people who want to enter them.
func (l *loop) Namespaces(s *state.Sandbox) []specs.LinuxNamespace {
	var out []specs.LinuxNamespace
	pins := l.hands.PinPaths(s)
	for _, kind := range slices.Sorted(maps.Keys(pins)) {
		out = append(out, specs.LinuxNamespace{Type: kind, Path: pins[kind]})
	}
	if s.PausePid != 0 {
		out = append(out, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: pidPath(s.PausePid)})
	}
	return out
}

// Describe is what this runtime was told, for `crictl info`.
func (l *loop) Describe() map[string]any {
	out := map[string]any{
		"root": l.opt.Root, "run": l.opt.Run, "socket": l.opt.Socket, "monitor": l.opt.Monitor, "cgroupRoot": l.opt.CgroupRoot,
		"cgroupDriver": "cgroupfs", "cgroupVersion": 1, "imageFolder": l.opt.ImageDir, "streaming": l.opt.Streaming,
		"metrics": l.opt.Metrics, "debug": l.opt.Debug,
	}
	if l.hands.Host.CgroupV2 {
		out["cgroupVersion"] = 2
	}
	if l.opt.Bridge.Bridge != "" {
		out["network"] = map[string]any{"bridge": l.opt.Bridge}
	} else {
		out["network"] = map[string]any{"cni": l.opt.CNI}
	}
	out["absentFilesystems"] = strings.Join(l.hands.Host.Absent, ",")
	return out
}
