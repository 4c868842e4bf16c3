package act

import (
	"path"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"worknode/fault"
	oci "worknode/oci/spec"
	"worknode/runtime/plan"
	"worknode/step"
)

// MakeCgroup makes a container's group with its limits. Repeat: safe.
func (h *Hands) MakeCgroup(path string, r *specs.LinuxResources) error {
	defer step.At("cgroup made")
	return h.Tree.Make(path, oci.Limits(r))
}

// SetCgroup changes limits of a group that exists.
func (h *Hands) SetCgroup(path string, r *specs.LinuxResources) error {
	return h.Tree.Set(path, oci.Limits(r))
}

// EndCgroup kills whatever is left in a group and removes it. Repeat: safe.
func (h *Hands) EndCgroup(path string) error {
	if path == "" || path == "/" {
		return nil
	}
	if err := h.Tree.Kill(path); err != nil {
		return err
	}
	step.At("cgroup killed")
	defer step.At("cgroup removed")
	return h.Tree.Remove(path)
}

// CgroupBinds shows a container its own groups on v1, at the places where programs look for limits.
func (h *Hands) CgroupBinds(path string) []plan.Bind {
	if h.Tree.V2() {
		return nil
	}
	var out []plan.Bind
	for _, procs := range h.Tree.ProcsFiles(path) {
		dir := filepath.Dir(procs)
		hierarchy := strings.TrimSuffix(dir, strings.TrimSuffix(path, "/"))
		out = append(out, plan.Bind{Source: dir, Destination: "/sys/fs/cgroup/" + filepath.Base(hierarchy)})
	}
	return out
}

// Group is a cgroup that we named after a sandbox.
type Group struct{ ID, Path string }

// OwnGroups lists the groups of sandboxes right below root: those whose request named no parent.
func (h *Hands) OwnGroups(root string) ([]Group, error) {
	root = path.Join("/", root)
	if root == "/" {
		return nil, nil // our groups would lie among the node's own
	}
	all, err := h.Tree.Under(root)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	var out []Group
	for _, p := range all {
		if path.Dir(p) == root && isID(path.Base(p)) {
			out = append(out, Group{path.Base(p), p})
		}
	}
	return out, nil
}

// isID reports whether a name is one of ours: 64 hex digits.
func isID(name string) bool {
	return len(name) == 64 && strings.Trim(name, "0123456789abcdef") == ""
}
