// Package inside is what a new process does to itself between clone and execve: it joins its cgroups and namespaces,
// builds its root, drops its rights and becomes the workload. Everything it is told is parsed and resolved already.
//
// It runs as "worknode-monitor init" on the main thread, which alone changes namespaces, credentials and filters;
// execve then discards the other threads of the Go runtime. Nothing here may be shared with the monitor's memory.
// It is not a place for policy, and nothing here survives a crash: the monitor reaps the process and reports the stage.
package inside

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/mount"
	"worknode/monitor/wire"
)

// Arg is the first argument that turns the monitor's binary into an init.
const Arg = "init"

// SocketFd is where the monitor's end of the conversation is found; TargetFd is the pidfd of the container to enter, or
// the socket to wait at; from KeepFd on are the descriptors that the workload gets as 3, 4 and so on.
const (
	SocketFd = 3
	TargetFd = 4
	KeepFd   = 5
)

// Request is the one frame that an init reads.
type Request struct {
	Init     wire.Init
	Terminal bool   `json:",omitempty"`
	Enter    bool   `json:",omitempty"` // TargetFd is a container whose namespaces and root to enter
	Keyring  string `json:",omitempty"` // name of the session keyring, one per container
	User     bool   `json:",omitempty"` // there is a user namespace to enter: outer.go; the request is sent twice
	Time     bool   `json:",omitempty"` // with Enter: there is a time namespace to enter: outer.go; the request is sent twice
	Wait     bool   `json:",omitempty"` // TargetFd listens for who tells us to go on: wait.go
	Aside    bool   `json:",omitempty"` // become a command of the host, with the root mounted for it: aside.go
	Keep     int    `json:",omitempty"` // how many descriptors there are from KeepFd on

	Hooks *wire.Hooks `json:",omitempty"`
}

// Report is a frame that an init writes. After Ready the end of the stream means that the program runs; an end
// without Ready means that init died on the way.
type Report struct {
	Error   *wire.Error `json:",omitempty"`
	Warning string      `json:",omitempty"`
	Pty     bool        `json:",omitempty"` // the frame carries the terminal's master
	Self    bool        `json:",omitempty"` // the frame carries the pidfd of the process that went on in another's place, and waits for Seen
	Made    bool        `json:",omitempty"` // namespaces and mounts are made: the hooks on the host are to run, init waits for Seen
	Ready   bool        `json:",omitempty"`
}

// Seen answers a Report that init waits with.
type Seen struct{}

func init() {
	// Credentials, namespaces and filters belong to threads; only the main one may execve without surprise to /proc.
	if len(os.Args) > 1 && os.Args[1] == Arg {
		runtime.LockOSThread()
	}
}

// Main runs an init and does not return on success.
func Main() int {
	unix.CloseOnExec(SocketFd)
	var req Request
	if err := read(&req); err != nil {
		_ = report(Report{Error: wire.FromError("protocol", err)})
		return 1
	}
	s := setup{req: req, Init: req.Init}
	stage, err := s.take(os.Args[2:])
	if err == nil {
		stage, err = s.run()
	}
	_ = report(Report{Error: wire.FromError(stage, kinded(err))})
	return 1
}

// setup is the state of one init on its way.
type setup struct {
	wire.Init
	req      Request
	labels   []label
	inner    bool  // the second life, inside the user namespace: trees and nodes are what the first left open
	trees    []int // root filesystem, then one for each of Mounts, or -1
	nodes    []int // one for each of Devices
	root     *mount.Root
	ptySlave int
	program  string
}

type step struct {
	stage string
	do    func() error
}

// run goes through the steps in the only order that works and returns the one that failed.
func (s *setup) run() (string, error) {
	// A container's processes must not look into this one while it still holds the host's rights and files.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	_ = unix.Prctl(unix.PR_SET_THP_DISABLE, 0, 0, 0, 0) // the monitor's own wish, inherited
	unix.Umask(0)
	s.ptySlave = -1
	for _, st := range s.steps() {
		if err := st.do(); err != nil {
			return st.stage, err
		}
	}
	return s.execute()
}

// ownMounts tells whether the mount namespace is the container's alone; if not, the root is only changed into.
func (s *setup) ownMounts() bool { return s.inner || slices.Contains(s.New, "mnt") }

func (s *setup) steps() []step {
	own := []step{{"terminal", s.terminal}, {"keyring", s.keyring}, {"rlimit", s.rlimits},
		{"cwd", s.workDir}, {"user", s.identity}, {"wait", s.wait},
		{"hook", s.hooksStart}, {wire.StageExec, s.findProgram}}
	if s.req.Aside {
		return []step{{"oom_score_adj", s.oomScore}, {"mount", s.aside}, {wire.StageExec, s.findProgram}}
	}
	if s.inner {
		return append(append([]step{{"label", s.openLabels}}, s.innerSteps()...), own...)
	}
	first := []step{{"cgroup", s.joinCgroups}, {"oom_score_adj", s.oomScore}, {"scheduler", s.schedule},
		{"namespace", s.joinNamespaces}, {"label", s.openLabels}}
	switch {
	case s.req.User || s.req.Time:
		return append(first, s.outerSteps()...)
	case s.req.Enter:
		first = append(first, step{"namespace", s.enter})
	default:
		first = append(first, step{"sysctl", s.sysctls}, step{"hostname", s.hostname}, step{"mount", s.buildRoot})
		first = append(first, s.rootSteps()...)
	}
	return append(first, own...)
}

// rootSteps are what remains once the root is filled.
func (s *setup) rootSteps() []step {
	return []step{{"hook", s.hooksCreate}, {"mount", s.enterRoot}}
}

func (s *setup) warn(format string, args ...any) {
	_ = report(Report{Warning: fmt.Sprintf(format, args...)})
}

// joinCgroups moves the main thread alone where the hierarchy allows it (v1): moving a whole process takes a
// system-wide lock and, when that is cold, an RCU grace period of about ten milliseconds. The other threads vanish in
// execve. Source: kernel cgroup_procs_write_start, which skips the lock for the writing thread itself.
func (s *setup) joinCgroups() error {
	if err := setAffinity(s.Extra.FirstCPUs); err != nil {
		return err
	}
	for _, procs := range s.Cgroup {
		dir, ok := strings.CutSuffix(procs, "/cgroup.procs")
		if ok {
			if err := writeFile(dir+"/tasks", "0"); err == nil {
				continue
			} else if !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		if err := writeFile(procs, "0"); err != nil {
			return err
		}
	}
	return nil
}

// oomScore never leaves the monitor's own score: a workload that the OOM killer may not choose spins at its limit.
func (s *setup) oomScore() error {
	adj := 0
	if s.OOMScoreAdj != nil {
		adj = *s.OOMScoreAdj
	}
	err := writeFile("/proc/self/oom_score_adj", strconv.Itoa(adj))
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		// Going below the score we inherited needs CAP_SYS_RESOURCE; the inherited one is the lowest we may have.
		s.warn("oom_score_adj %d: not permitted (CAP_SYS_RESOURCE is missing), the inherited value stays", adj)
		return nil
	}
	return err
}

// namespaceFlag is a function and not a map: a map is built at the start of every process of this binary.
func namespaceFlag(name string) int {
	switch name {
	case "net":
		return unix.CLONE_NEWNET
	case "ipc":
		return unix.CLONE_NEWIPC
	case "uts":
		return unix.CLONE_NEWUTS
	case "cgroup":
		return unix.CLONE_NEWCGROUP
	case "mnt":
		return unix.CLONE_NEWNS
	}
	return 0
}

// CloneFlags translates the namespaces to create into flags for clone. The cgroup namespace is not among them: its
// root is the cgroup at the moment of creation, so init makes it after joining.
// Errors: Unsupported for a user namespace, Invalid for a name that is none.
func CloneFlags(names []string) (uintptr, error) {
	var flags uintptr
	for _, n := range names {
		switch n {
		case "mnt":
			flags |= unix.CLONE_NEWNS
		case "pid":
			flags |= unix.CLONE_NEWPID
		case "ipc", "uts", "net":
			flags |= uintptr(namespaceFlag(n))
		case "cgroup", "time":
		case "user":
			return 0, fault.New(fault.Unsupported, "a new user namespace: make it with its mapping first, and name it in Join")
		default:
			return 0, fault.New(fault.Invalid, "namespace %q is not one that this monitor knows", n)
		}
	}
	return flags, nil
}

func (s *setup) joinNamespaces() error {
	for name, path := range s.Join {
		if name == "pid" || name == "user" || name == "mnt" {
			continue // the monitor cloned us into the first; the second comes last, in outer.go; the third hides the paths
		}
		if err := joinNamespace(name, path); err != nil {
			return err
		}
	}
	if path := s.Join["mnt"]; path != "" {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare fs: %w", err)
		}
		if err := joinNamespace("mnt", path); err != nil {
			return err
		}
	}
	for _, name := range s.New {
		switch {
		case name == "cgroup" && !s.req.User:
			if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
				return fmt.Errorf("new cgroup namespace: %w", err)
			}
		case name == "time":
			if err := s.newTime(); err != nil {
				return err
			}
		}
	}
	return nil
}

func joinNamespace(name, path string) error {
	flag := namespaceFlag(name)
	if flag == 0 {
		return fault.New(fault.Unsupported, "join %s namespace %s: this build cannot", name, path)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	err = unix.Setns(fd, flag)
	unix.Close(fd)
	if err != nil {
		return fmt.Errorf("join %s namespace %s: %w", name, path, err)
	}
	return nil
}

// entered are the namespaces of a container that an exec joins, besides those of pids (by clone) and users (outer.go).
const entered = unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP

// enter joins the namespaces of a running container in one call, its root included.
// The mount namespace can be joined only by a thread that shares its root and working directory with nobody.
func (s *setup) enter() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare fs: %w", err)
	}
	err := unix.Setns(TargetFd, entered)
	unix.Close(TargetFd)
	if err == unix.ESRCH {
		return fault.New(fault.NotFound, "enter the container: its process has exited")
	}
	if err != nil {
		return fmt.Errorf("enter the container's namespaces: %w", err)
	}
	return nil
}

// sysctls are written through the host's /proc: which values they change depends on the writer's namespaces alone,
// and the container's own /proc may be read-only or absent.
func (s *setup) sysctls() error {
	for name, value := range s.Sysctl {
		rel := name
		if !strings.Contains(name, "/") {
			rel = strings.ReplaceAll(name, ".", "/")
		}
		if strings.Contains(rel, "..") {
			return fault.New(fault.Invalid, "sysctl %q is not a name", name)
		}
		if err := writeFile("/proc/sys/"+rel, value); err != nil {
			return fmt.Errorf("sysctl %s=%s: %w", name, value, err)
		}
	}
	return nil
}

func (s *setup) hostname() error {
	if s.Hostname != "" {
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			return fmt.Errorf("set hostname %q: %w", s.Hostname, err)
		}
	}
	if s.Extra.Domainname != "" {
		if err := unix.Setdomainname([]byte(s.Extra.Domainname)); err != nil {
			return fmt.Errorf("set domainname %q: %w", s.Extra.Domainname, err)
		}
	}
	return nil
}

func writeFile(name, value string) error {
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	_, err = unix.Write(fd, []byte(value))
	unix.Close(fd)
	if err != nil {
		return &os.PathError{Op: "write " + value + " to", Path: name, Err: err}
	}
	return nil
}

// kinded gives an error that has no kind the one its errno suggests.
func kinded(err error) error {
	if err == nil || fault.Of(err) != fault.Unknown {
		return err
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return fault.As(fault.NotFound, err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.EROFS):
		return fault.As(fault.Denied, err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE),
		errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EDQUOT):
		return fault.As(fault.Exhausted, err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return fault.As(fault.Invalid, err)
	case errors.Is(err, unix.EBUSY):
		return fault.As(fault.Busy, err)
	}
	return err
}

// socket is where reports go: SocketFd until the workload's own descriptors need the number, then a higher one.
var socket = SocketFd

// read and report are the blocking, threadless twins of wire.Conn: the poller would cost an init more than its mounts.
func read(v any) error {
	var head [4]byte
	if err := readFull(head[:]); err != nil {
		return err
	}
	size := binary.LittleEndian.Uint32(head[:])
	if size > wire.MaxFrame {
		return fault.New(fault.Invalid, "frame of %d bytes is over the limit of %d", size, wire.MaxFrame)
	}
	body := make([]byte, size)
	if err := readFull(body); err != nil {
		return err
	}
	return json.Unmarshal(body, v)
}

func readFull(b []byte) error {
	for len(b) > 0 {
		n, err := unix.Read(socket, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("read from the monitor: %w", err)
		}
		if n == 0 {
			return errors.New("the monitor closed the connection")
		}
		b = b[n:]
	}
	return nil
}

// report writes one frame. Mostly nobody is left to tell when that fails.
func report(r Report, fds ...int) error {
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return send(append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...), fds...)
}

// ready is the frame of Report{Ready: true}. Written out, as setting up the encoder for one frame takes longer than
// all that init says to the kernel about the workload's rights.
const ready = "\x0e\x00\x00\x00" + `{"Ready":true}`

func send(frame []byte, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for len(frame) > 0 {
		var n int
		var err error
		if oob != nil {
			n, err = unix.SendmsgN(socket, frame, oob, nil, unix.MSG_NOSIGNAL)
		} else { // a plain write, which a narrow seccomp filter more likely allows
			n, err = unix.Write(socket, frame)
		}
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		frame, oob = frame[n:], nil
	}
	return nil
}
