package inside

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/mount"
	"worknode/kernel/pidfd"
	"worknode/kernel/stub"
	"worknode/monitor/wire"
)

// With a user namespace an init has two lives. The outer one has the host's rights: it joins the cgroups, opens what
// is to be mounted and maps its owners. Then it becomes a stub, which has one thread and can therefore enter the user
// namespace; a container's stub makes the other new namespaces in there, so that they belong to it, and goes on as a
// child in the outer one's place. The stub becomes this binary again, as the inner life: it reads its orders from the
// same socket (they are sent twice) and finds the mounts in descriptors named by its arguments.
// Why so: docs/decisions/0002-user-namespaces.md.

// outerSteps end in the stub: the last one returns only if it fails.
func (s *setup) outerSteps() []step {
	if s.req.Enter {
		return []step{{"terminal", s.ownStdio}, {"rlimit", s.raiseRlimits}, {"namespace", s.become}}
	}
	steps := []step{{"mount", s.openRoot}, {"terminal", s.ownStdio}, {"rlimit", s.raiseRlimits}, {"namespace", s.become}}
	if !s.newInside() {
		steps = append([]step{{"sysctl", s.sysctls}, {"hostname", s.hostname}}, steps...)
	}
	return steps
}

func (s *setup) innerSteps() []step {
	if s.req.Enter {
		return nil
	}
	steps := []step{{"namespace", s.replace}, {"mount", s.attachRoot}}
	if s.newInside() {
		steps = slices.Insert(steps, 1, step{"sysctl", s.sysctls}, step{"hostname", s.hostname})
	}
	return append(steps, s.rootSteps()...)
}

// newInside reports whether a namespace with settings of its own is made inside the user namespace.
func (s *setup) newInside() bool {
	return slices.ContainsFunc(s.New, func(n string) bool { return n == "net" || n == "ipc" || n == "uts" })
}

// openRoot prepares all mounts that take the host's rights, as detached trees.
func (s *setup) openRoot() error {
	user, err := openUser(s.Join["user"])
	if err != nil {
		return err
	}
	defer unix.Close(user)
	binds, err := s.takeBinds(user)
	if err != nil {
		return err
	}
	if s.Root.IDMap {
		if err := s.mapLayers(user); err != nil {
			return err
		}
	}
	target, err := s.placeRoot()
	if err != nil {
		return err
	}
	tree, err := mount.Clone(target, true)
	if err != nil {
		return err
	}
	for i, m := range s.Mounts {
		if len(m.Lower) > 0 {
			if binds[i], err = s.layered(m, user); err != nil {
				return fmt.Errorf("mount %s: %w", m.Destination, err)
			}
		}
	}
	s.trees = append([]int{tree}, binds...)
	return s.makeNodes()
}

func openUser(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open user namespace", Path: path, Err: err}
	}
	return fd, nil
}

// mapLayers shows the layers with mapped owners, each over itself: an overlay takes its lower layers from this mount
// namespace and as they are shown. Source: kernel overlayfs.rst; needs kernel 5.19.
func (s *setup) mapLayers(user int) error {
	if s.Root.Base != "" {
		if err := unix.Chdir(s.Root.Base); err != nil {
			return &os.PathError{Op: "chdir", Path: s.Root.Base, Err: err}
		}
	}
	layers := s.Root.Lower
	if len(layers) == 0 {
		layers = []string{s.Root.Path}
	}
	for _, dir := range layers {
		if err := mount.IdmapOver(dir, user); err != nil {
			return err
		}
	}
	return nil
}

// layered is the detached overlay of an image volume. It is mounted over its topmost layer, where nobody else looks.
func (s *setup) layered(m wire.Mount, user int) (int, error) {
	if s.Root.Base != "" {
		if err := unix.Chdir(s.Root.Base); err != nil {
			return -1, &os.PathError{Op: "chdir", Path: s.Root.Base, Err: err}
		}
	}
	for _, dir := range m.Lower {
		if m.IDMap && !(s.Root.IDMap && slices.Contains(s.Root.Lower, dir)) {
			if err := mount.IdmapOver(dir, user); err != nil {
				return -1, err
			}
		}
	}
	if err := mount.Overlay(m.Lower[0], m.Lower, "", "", false); err != nil {
		return -1, err
	}
	tree, err := mount.Clone(m.Lower[0], false)
	if err != nil {
		return -1, err
	}
	if err := mount.Change(tree, m.Flags, 0, false); err != nil {
		return -1, err
	}
	// Another volume may be of the same image.
	return tree, unix.Unmount(m.Lower[0], unix.MNT_DETACH)
}

// makeNodes makes the device nodes, which nobody may inside a user namespace, and opens each as a mount of its own.
func (s *setup) makeNodes() error {
	if len(s.Devices) == 0 {
		return nil
	}
	const place = "/dev" // covered for a moment, in this mount namespace alone
	if err := mount.Tmpfs(place, "mode=700,size=64k", unix.MS_NOSUID|unix.MS_NOEXEC); err != nil {
		return err
	}
	dir, err := mount.OpenRoot(place)
	if err != nil {
		return err
	}
	defer dir.Close()
	for i, d := range s.Devices {
		d.Path = fmt.Sprintf("/dev/%d", i)
		if m := s.IDMap; m != nil {
			d.UID, d.GID = m.HostUID(d.UID), m.HostGID(d.GID)
		}
		if err := device(dir, dir.Fd(), d); err != nil {
			return fmt.Errorf("device %s: %w", s.Devices[i].Path, err)
		}
		tree, err := mount.Clone(fmt.Sprintf("%s/%d", place, i), false)
		if err != nil {
			return err
		}
		s.nodes = append(s.nodes, tree)
	}
	return unix.Unmount(place, unix.MNT_DETACH)
}

// ownStdio gives the pipes to the user that the process will be, while we still may.
func (s *setup) ownStdio() error {
	if s.IDMap == nil || s.req.Terminal {
		return nil
	}
	for fd := range 3 {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO {
			_ = unix.Fchown(fd, int(s.IDMap.HostUID(s.UID)), int(s.IDMap.HostGID(s.GID)))
		}
	}
	return nil
}

// raiseRlimits raises hard limits, which takes the host's rights; the inner life then lowers and sets.
func (s *setup) raiseRlimits() error {
	for _, l := range s.Rlimits {
		var now unix.Rlimit
		if err := unix.Prlimit(0, l.Type, nil, &now); err != nil {
			return fmt.Errorf("rlimit %d: %w", l.Type, err)
		}
		if l.Hard > now.Max {
			_ = unix.Prlimit(0, l.Type, &unix.Rlimit{Cur: now.Cur, Max: l.Hard}, nil) // rlimits tells if it is denied
		}
	}
	return nil
}

// become turns the process into the stub.
func (s *setup) become() error {
	self, err := unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/proc/self/exe", Err: err}
	}
	e := stub.Enter{Program: self, Namespaces: TargetFd, Join: entered}
	if s.req.User {
		e.Join |= unix.CLONE_NEWUSER
	}
	if s.req.Time {
		e.Join |= unix.CLONE_NEWTIME
	}
	if !s.req.Enter {
		e.Join = unix.CLONE_NEWUSER
		if e.Namespaces, err = openUser(s.Join["user"]); err != nil {
			return err
		}
		flags, err := CloneFlags(s.New)
		if err != nil {
			return err
		}
		if slices.Contains(s.New, "cgroup") {
			flags |= unix.CLONE_NEWCGROUP
		}
		e.Clone = uint64(flags) | unix.CLONE_PARENT
	}
	e.Report, e.Errno = failure("namespace", "enter the user namespace and become its root: error number 000 from the kernel; its ids 0 must be mapped and the monitor's program be executable for everybody")
	program, err := stub.EnterFile(e)
	if err != nil {
		return err
	}
	// The stub finds its descriptors by number; they vanish when it becomes the inner life.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare fs: %w", err)
	}
	args := []string{"worknode-monitor", Arg}
	pass := slices.Concat([]int{self, e.Namespaces}, s.trees, s.nodes)
	for _, fd := range pass {
		args = append(args, strconv.Itoa(fd))
	}
	stay := append(pass, SocketFd)
	if s.req.Wait {
		stay = append(stay, TargetFd)
	}
	for _, fd := range stay {
		if fd >= 0 {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
				return fmt.Errorf("descriptor %d: %w", fd, err)
			}
		}
	}
	err = syscall.Exec(mount.FdPath(int(program.Fd())), args, append(os.Environ(), innerEnv+"=1"))
	return fmt.Errorf("become the stub: %w", err)
}

// innerEnv tells the inner life from the outer one.
const innerEnv = "WORKNODE_INNER"

// failure is an error frame that the stub can write, and where in it three digits wait for the number.
func failure(stage, text string) (frame []byte, at int) {
	body, err := json.Marshal(Report{Error: &wire.Error{Kind: int(fault.Denied), Stage: stage, Text: text}})
	if err != nil {
		panic(err) // strings and a number
	}
	frame = append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...)
	for i := 4; i+3 <= len(frame); i++ {
		if string(frame[i:i+3]) == "000" {
			at = i
		}
	}
	return frame, at
}

// take reads the arguments of an inner life: two descriptors that were the stub's, then those of the root, of each
// mount, of each device. The stub's are closed one by one: a sweep would take the Go runtime's own along.
func (s *setup) take(args []string) (string, error) {
	if s.inner = os.Getenv(innerEnv) != ""; !s.inner {
		return "", nil
	}
	want := 2
	if !s.req.Enter {
		want = 3 + len(s.Mounts) + len(s.Devices)
	}
	if len(args) != want {
		return "protocol", fmt.Errorf("%d descriptors for %d mounts and %d devices", len(args), len(s.Mounts), len(s.Devices))
	}
	fds := make([]int, len(args))
	for i, a := range args {
		n, err := strconv.Atoi(a)
		if err != nil {
			return "protocol", err
		}
		fds[i] = n
	}
	unix.Close(fds[0])
	unix.Close(fds[1])
	if !s.req.Enter {
		s.trees, s.nodes = fds[2:3+len(s.Mounts)], fds[3+len(s.Mounts):]
	}
	return "", nil
}

// replace tells the monitor who goes on: this process has the outer one's parent, and nobody saw it come.
func (s *setup) replace() error {
	if _, err := unix.Setsid(); err != nil {
		return fmt.Errorf("new session: %w", err)
	}
	self, err := pidfd.Open(os.Getpid())
	if err != nil {
		return err
	}
	defer self.Close()
	if err := report(Report{Self: true}, int(self.Fd())); err != nil {
		return err
	}
	var seen Seen // else we could end, and be reaped, before anybody knows our number
	return read(&seen)
}

// attachRoot makes the root that was prepared outside the one of this mount namespace, and fills it.
func (s *setup) attachRoot() error {
	// Hooks want to find the root by its path. Without them it need not be reachable for the container's users.
	place := "/"
	if h := s.req.Hooks; h != nil && len(h.CreateContainer)+len(h.CreateRuntime)+len(h.Prestart) > 0 {
		place = s.rootPlace()
	}
	top, err := unix.Open(place, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: place, Err: err}
	}
	err = mount.Attach(s.trees[0], top)
	unix.Close(top)
	if err != nil {
		return fmt.Errorf("root filesystem: %w", err)
	}
	return s.furnish(mount.RootOf(s.trees[0]), s.trees[1:])
}

// showDevice binds a node that was made outside.
func showDevice(root *mount.Root, d wire.Device, node int) error {
	at, err := root.File(d.Path)
	if errors.Is(err, os.ErrExist) || errors.Is(err, unix.EACCES) {
		return fault.As(fault.Exists, err)
	}
	if err != nil {
		return err
	}
	defer unix.Close(at)
	defer unix.Close(node)
	return mount.Attach(node, at)
}
