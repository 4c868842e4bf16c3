package act

import (
	"bytes"
	"encoding/binary"
	"os"
	"path"
	"path/filepath"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"

	"worknode/fault"
	"worknode/monitor/wire"
	oci "worknode/oci/spec"
	"worknode/runtime/state"
)

// PauseID is what the monitor knows a pod's init by.
func PauseID(sandbox string) string { return "pause-" + sandbox }

// PauseCgroup is the cgroup of a pod's init.
func PauseCgroup(s *state.Sandbox) string { return path.Join(s.CgroupParent, PauseID(s.ID)) }

var writePause sync.Mutex

// Pause is the init of a pod-wide pid namespace: a program of forty bytes (pauseCode), alone in an empty root, without
// any right. It makes the cgroup.
// Errors: Unsupported on an architecture without pauseCode.
func (h *Hands) Pause(s *state.Sandbox) (wire.Start, error) {
	root, err := h.pauseRoot()
	if err != nil {
		return wire.Start{}, err
	}
	if err := h.MakeCgroup(PauseCgroup(s), &specs.LinuxResources{}); err != nil {
		return wire.Start{}, err
	}
	init := wire.Init{
		Cgroup: h.Tree.ProcsFiles(PauseCgroup(s)), Join: map[string]string{}, New: []string{"mnt", "pid"},
		Root: wire.Root{Path: root, Readonly: true}, Args: []string{"/pause"}, Cwd: "/", UID: 65535, GID: 65535, NoNewPrivs: true,
	}
	if m := users(s); m != nil { // its last id, should the pod have fewer than usual
		init.UID, init.GID = min(init.UID, m.Size-1), min(init.GID, m.Size-1)
	}
	for kind, pin := range h.PinPaths(s) {
		init.Join[oci.NamespaceName(kind)] = pin
	}
	return wire.Start{ID: PauseID(s.ID), Init: init}, nil
}

// pauseRoot is a folder that holds nothing but the program; all pods share it read-only.
func (h *Hands) pauseRoot() (string, error) {
	if len(pauseCode) == 0 {
		return "", fault.New(fault.Unsupported, "a pid namespace shared by a pod is not supported on this architecture yet")
	}
	writePause.Lock()
	defer writePause.Unlock()
	dir := filepath.Join(h.Root, "pause")
	file := filepath.Join(dir, "pause")
	want := executable(pauseCode)
	if have, err := os.ReadFile(file); err == nil && bytes.Equal(have, want) {
		return dir, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fault.New(fault.Exhausted, "pod's init: %w", err)
	}
	if err := os.WriteFile(file+".new", want, 0o755); err != nil {
		return "", fault.New(fault.Exhausted, "pod's init: %w", err)
	}
	return dir, os.Rename(file+".new", file)
}

// executable wraps code in the smallest program file: one header, one segment to read and execute, loaded as it lies.
// Source: elf(5).
func executable(code []byte) []byte {
	const load, headers = 0x400000, 64 + 56
	size := uint64(headers + len(code))
	var b bytes.Buffer
	b.Write([]byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	for _, v := range []any{
		uint16(2), uint16(pauseMachine), uint32(1), uint64(load + headers), uint64(64), uint64(0), uint32(0), // ET_EXEC, entry, program headers at 64
		uint16(64), uint16(56), uint16(1), uint16(64), uint16(0), uint16(0), // one program header, no sections
		uint32(1), uint32(5), uint64(0), uint64(load), uint64(load), size, size, uint64(4096), // PT_LOAD, r-x
	} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err) // a value above has no fixed size
		}
	}
	b.Write(code)
	return b.Bytes()
}
