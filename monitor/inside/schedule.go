package inside

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// schedule sets what threads inherit, for this one that becomes the workload, while we still have the host's rights.
// Source: OCI runtime spec, config.md, "scheduler", "ioPriority"; config-linux.md, "personality", "memoryPolicy".
func (s *setup) schedule() error {
	e := s.Extra
	if err := setAffinity(e.CPUs); err != nil {
		return err
	}
	if a := e.Scheduler; a != nil {
		attr := unix.SchedAttr{Policy: a.Policy, Flags: a.Flags, Nice: a.Nice, Priority: a.Priority,
			Runtime: a.Runtime, Deadline: a.Deadline, Period: a.Period}
		attr.Size = uint32(unsafe.Sizeof(attr))
		if err := unix.SchedSetAttr(0, &attr, 0); err != nil {
			return fmt.Errorf("scheduler %+v: %w", *a, err)
		}
	}
	if e.IOPriority != nil {
		const process = 1 // IOPRIO_WHO_PROCESS
		if _, _, err := unix.RawSyscall(unix.SYS_IOPRIO_SET, process, 0, uintptr(*e.IOPriority)); err != 0 {
			return fmt.Errorf("I/O priority %#x: %w", *e.IOPriority, err)
		}
	}
	if e.Personality != nil {
		if _, _, err := unix.RawSyscall(unix.SYS_PERSONALITY, uintptr(*e.Personality), 0, 0); err != 0 {
			return fmt.Errorf("personality %#x: %w", *e.Personality, err)
		}
	}
	if m := e.Memory; m != nil {
		var nodes unsafe.Pointer
		if len(m.Nodes) > 0 {
			nodes = unsafe.Pointer(&m.Nodes[0])
		}
		if _, _, err := unix.RawSyscall(unix.SYS_SET_MEMPOLICY, uintptr(m.Mode), uintptr(nodes), uintptr(64*len(m.Nodes)+1)); err != 0 {
			return fmt.Errorf("memory policy %#x: %w", m.Mode, err)
		}
	}
	return nil
}

func setAffinity(mask []uint64) error {
	if len(mask) == 0 {
		return nil
	}
	_, _, err := unix.RawSyscall(unix.SYS_SCHED_SETAFFINITY, 0, uintptr(8*len(mask)), uintptr(unsafe.Pointer(&mask[0])))
	if err != 0 {
		return fmt.Errorf("CPU affinity %x: %w", mask, err)
	}
	return nil
}

// newTime makes a time namespace. We enter it with execve, which kernels do since 6.1; older ones would only take the
// workload's children there. Source: time_namespaces(7); kernel commit 2b5f9dad32ed.
func (s *setup) newTime() error {
	var name unix.Utsname
	var major, minor int
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	release := unix.ByteSliceToString(name.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil || major < 6 || major == 6 && minor < 1 {
		return fault.New(fault.Unsupported, "a time namespace needs kernel 6.1, this is %s", release)
	}
	if err := unix.Unshare(unix.CLONE_NEWTIME); err != nil {
		return fmt.Errorf("new time namespace: %w", err)
	}
	if s.Extra.TimeOffsets == "" {
		return nil
	}
	return writeFile("/proc/self/timens_offsets", s.Extra.TimeOffsets)
}

// label is a security label that takes effect at execve, and the file it is written to.
type label struct {
	file  *os.File
	value string
}

// openLabels opens the files of the label while the host's /proc is in view.
func (s *setup) openLabels() error {
	for _, want := range []struct{ value, file, module string }{
		{s.Extra.AppArmor, "/proc/thread-self/attr/apparmor/exec", "AppArmor"},
		{s.Extra.SELinux, "/proc/thread-self/attr/exec", "SELinux"},
	} {
		if want.value == "" {
			continue
		}
		f, err := os.OpenFile(want.file, os.O_WRONLY, 0)
		if err != nil {
			return fault.New(fault.Unsupported, "%s label %q: %w", want.module, want.value, err)
		}
		value := want.value
		if want.module == "AppArmor" {
			value = "exec " + value
		}
		s.labels = append(s.labels, label{f, value})
	}
	return nil
}

func (s *setup) writeLabels() error {
	for _, l := range s.labels {
		if _, err := l.file.WriteString(l.value); err != nil {
			return fmt.Errorf("security label %q: %w", l.value, err)
		}
	}
	return nil
}
