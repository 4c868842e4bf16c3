package inside

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/monitor/wire"
)

// keyring gives each container a session keyring of its own; otherwise it would search the host's.
func (s *setup) keyring() error {
	if s.req.Keyring == "" {
		return nil
	}
	if _, err := unix.KeyctlJoinSessionKeyring("worknode-" + s.req.Keyring); err != nil && err != unix.ENOSYS {
		s.warn("session keyring: %v; the process shares the monitor's", err)
	}
	return nil
}

func (s *setup) rlimits() error {
	for _, l := range s.Rlimits {
		// Prlimit of x/sys tells package syscall, which would otherwise put back the limit on open files in Exec.
		err := unix.Prlimit(0, l.Type, &unix.Rlimit{Cur: l.Soft, Max: l.Hard}, nil)
		if err == unix.EPERM {
			var now unix.Rlimit
			if err = unix.Prlimit(0, l.Type, nil, &now); err == nil {
				clamped := unix.Rlimit{Cur: min(l.Soft, now.Max), Max: min(l.Hard, now.Max)}
				s.warn("rlimit %d: raising it to %d is not permitted (CAP_SYS_RESOURCE is missing), it is %d", l.Type, l.Hard, clamped.Max)
				err = unix.Prlimit(0, l.Type, &clamped, nil)
			}
		}
		if err != nil {
			return fmt.Errorf("rlimit %d to %d:%d: %w", l.Type, l.Soft, l.Hard, err)
		}
	}
	return nil
}

// workDir enters the working directory while still root, making it if absent.
func (s *setup) workDir() error {
	if s.Cwd == "" {
		s.Cwd = "/"
	}
	// No descriptor of the host may be open here: /proc/self/fd/N as working directory would lead out of the root.
	if err := unix.CloseRange(uint(socket)+1, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range: %w", err)
	}
	err := unix.Chdir(s.Cwd)
	if err == unix.ENOENT {
		if err := mkdirAll(s.Cwd); err != nil {
			return err
		}
		err = unix.Chdir(s.Cwd)
	}
	if err != nil {
		return &os.PathError{Op: "chdir", Path: s.Cwd, Err: err}
	}
	var buf [unix.PathMax]byte
	if n, err := unix.Getcwd(buf[:]); err != nil || n == 0 || buf[0] != '/' {
		return fault.New(fault.Denied, "working directory %s lies outside of the container", s.Cwd)
	}
	if s.Umask != nil {
		unix.Umask(int(*s.Umask))
	} else {
		unix.Umask(0o022)
	}
	return nil
}

func mkdirAll(dir string) error {
	if parent := path.Dir(dir); parent != dir {
		var st unix.Stat_t
		if unix.Stat(parent, &st) == unix.ENOENT {
			if err := mkdirAll(parent); err != nil {
				return err
			}
		}
	}
	if err := unix.Mkdir(dir, 0o755); err != nil && err != unix.EEXIST {
		return &os.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	return nil
}

// identity narrows the bounding set and changes users, all on this thread: the wrappers of package syscall would signal
// every thread of the runtime, and execve keeps the credentials of the calling one.
func (s *setup) identity() error {
	have, err := permitted()
	if err != nil {
		return err
	}
	if c := s.Caps; (c.Bounding|c.Effective|c.Permitted)&^have != 0 { // Source: OCI config.md, "capabilities"
		s.warn("capabilities %#x are not given: this machine does not give them to us", (c.Bounding|c.Effective|c.Permitted)&^have)
	}
	for c := range 64 {
		if s.Caps.Bounding>>c&1 == 0 {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err == unix.EINVAL {
				break // past the last capability this kernel has
			} else if err != nil {
				return fmt.Errorf("drop capability %d from the bounding set: %w", c, err)
			}
		}
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	return s.users()
}

func (s *setup) users() error {
	var groups *uint32
	if len(s.Groups) > 0 {
		groups = &s.Groups[0]
	}
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(s.Groups)), uintptr(unsafe.Pointer(groups)), 0); errno != 0 {
		return fmt.Errorf("set groups %v: %w", s.Groups, errno)
	}
	gid, uid := uintptr(s.GID), uintptr(s.UID)
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return fmt.Errorf("set gid %d: %w", s.GID, errno)
	}
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return fmt.Errorf("set uid %d: %w", s.UID, errno)
	}
	return nil
}

func raiseEffective() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	data[0].Effective, data[1].Effective = data[0].Permitted, data[1].Permitted
	if err := unix.Capset(&head, &data[0]); err != nil {
		return fmt.Errorf("raise capabilities: %w", err)
	}
	return nil
}

// permitted are the capabilities that this process has.
func permitted() (uint64, error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var now [2]unix.CapUserData
	if err := unix.Capget(&head, &now[0]); err != nil {
		return 0, fmt.Errorf("read capabilities: %w", err)
	}
	return uint64(now[0].Permitted) | uint64(now[1].Permitted)<<32, nil
}

func (s *setup) capabilities() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	// What the monitor itself was not given cannot be passed on; asking for it would fail as a whole.
	have, err := permitted()
	if err != nil {
		return err
	}
	c := s.Caps
	eff, per, inh := c.Effective&have, c.Permitted&have, c.Inheritable&have
	data := [2]unix.CapUserData{
		{Effective: uint32(eff), Permitted: uint32(per), Inheritable: uint32(inh)},
		{Effective: uint32(eff >> 32), Permitted: uint32(per >> 32), Inheritable: uint32(inh >> 32)},
	}
	if err := unix.Capset(&head, &data[0]); err != nil {
		return fmt.Errorf("set capabilities effective=%#x permitted=%#x inheritable=%#x: %w", eff, per, inh, err)
	}
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	for n := range 64 {
		if (c.Ambient&have)>>n&1 != 0 {
			if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(n), 0, 0); err != nil {
				return fmt.Errorf("raise ambient capability %d: %w", n, err)
			}
		}
	}
	return nil
}

// seccomp loads the compiled filter for this thread, which is the one that becomes the workload.
func (s *setup) seccomp() error {
	const size = int(unsafe.Sizeof(unix.SockFilter{}))
	if len(s.Seccomp)%size != 0 || len(s.Seccomp)/size > 4096 {
		return fault.New(fault.Invalid, "seccomp filter of %d bytes is not 1 to 4096 instructions of %d", len(s.Seccomp), size)
	}
	filter := make([]unix.SockFilter, len(s.Seccomp)/size)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&filter[0])), len(s.Seccomp)), s.Seccomp)
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(s.SeccompFlags), uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("load the seccomp filter: %w", errno)
	}
	return nil
}

// findProgram looks for the program with the workload's user but before its filter, which may forbid looking.
func (s *setup) findProgram() (err error) {
	if len(s.Args) == 0 {
		return fault.New(fault.Invalid, "no command to run")
	}
	s.program, err = lookPath(s.Args[0], s.Env)
	return err
}

// execute gives up the last rights and becomes the workload. It returns only if that fails.
// Ready goes out before the filter is loaded: after it, only what every workload needs may be called.
func (s *setup) execute() (string, error) {
	// Signals that the monitor's starter had blocked or ignored must not stay so: execve keeps both.
	attendSignals()
	var none unix.Sigset_t
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &none, nil)
	if err := send([]byte(ready)); err != nil {
		// The monitor was killed: without it nobody would know of the workload, or read what it writes.
		return wire.StageExec, err
	}
	s.keep()
	filter := len(s.Seccomp) > 0
	if filter && !s.NoNewPrivs {
		// Without no_new_privs, loading a filter takes CAP_SYS_ADMIN: so it comes before the capabilities go.
		if err := raiseEffective(); err != nil {
			return "seccomp", err
		}
		if err := s.seccomp(); err != nil {
			return "seccomp", err
		}
	}
	if err := s.capabilities(); err != nil {
		return "user", err
	}
	if s.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return "user", fmt.Errorf("no_new_privs: %w", err)
		}
		if filter {
			if err := s.seccomp(); err != nil {
				return "seccomp", err
			}
		}
	}
	if err := s.writeLabels(); err != nil {
		return "label", err
	}
	err := syscall.Exec(s.program, s.Args, s.Env)
	kind := fault.Invalid
	switch {
	case errors.Is(err, unix.ENOENT): // the file is there, its interpreter is not
		kind = fault.NotFound
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		kind = fault.Denied
	}
	return wire.StageExec, fault.New(kind, "exec %s: %w", s.program, err)
}

// attendSignals gives every ignored signal its default action again, those too that os/signal has no hold of.
// Source: rt_sigaction(2); the kernel's struct sigaction begins with the handler, and SIG_IGN is 1.
func attendSignals() {
	type action struct {
		handler, flags, restorer uintptr
		mask                     uint64
	}
	for sig := uintptr(1); sig <= 64; sig++ {
		var now, usual action
		_, _, err := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&now)), unsafe.Sizeof(now.mask), 0, 0)
		if err == 0 && now.handler == 1 {
			_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&usual)), 0, unsafe.Sizeof(usual.mask), 0, 0)
		}
	}
}

// lookPath finds the program as users of Docker and Kubernetes know it, in the words they know.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, executable(name)
	}
	list := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			list = v
		}
	}
	for dir := range strings.SplitSeq(list, ":") {
		if dir == "" {
			dir = "."
		}
		if full := path.Join(dir, name); executable(full) == nil {
			if !strings.Contains(full, "/") {
				full = "./" + full
			}
			return full, nil
		}
	}
	return "", fault.New(fault.NotFound, "exec: %q: executable file not found in $PATH", name)
}

func executable(name string) error {
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		kind := fault.NotFound
		if err == unix.EACCES {
			kind = fault.Denied
		}
		return fault.New(kind, "exec: %q: stat %s: %w", name, name, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return fault.New(fault.Denied, "exec: %q: is a directory", name)
	}
	if err := unix.Faccessat(unix.AT_FDCWD, name, unix.X_OK, unix.AT_EACCESS); err != nil {
		if err == unix.EACCES || err == unix.EPERM {
			return fault.New(fault.Denied, "exec: %q: permission denied", name)
		}
	}
	return nil
}
