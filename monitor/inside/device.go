package inside

import (
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/mount"
	"worknode/monitor/wire"
)

// devices makes the nodes asked for and the links that every container has.
// Source: OCI runtime spec, config-linux.md, "Default Devices" and "Dev symbolic links".
func (s *setup) devices(root *mount.Root) error {
	own := len(s.Devices) > 0 // a /dev of its own, not one bound from the host
	var pts bool              // a /dev/pts of its own
	for _, m := range s.Mounts {
		if path.Clean(m.Destination) == "/dev" {
			own = m.Flags&unix.MS_BIND == 0
		}
		pts = pts || path.Clean(m.Destination) == "/dev/pts"
	}
	if len(s.Devices) == 0 && !own {
		return nil
	}
	dev, err := root.Dir("/dev")
	if err != nil {
		return err
	}
	defer unix.Close(dev)
	for i, d := range s.Devices {
		if s.inner {
			err = showDevice(root, d, s.nodes[i])
		} else {
			err = device(root, dev, d)
		}
		if err != nil {
			return fmt.Errorf("device %s: %w", d.Path, err)
		}
	}
	if !own {
		return nil
	}
	links := [][2]string{{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"}}
	if pts {
		links = append(links, [2]string{"pts/ptmx", "ptmx"})
	}
	for _, l := range links {
		if err := unix.Symlinkat(l[0], dev, l[1]); err != nil && err != unix.EEXIST {
			return fmt.Errorf("link /dev/%s: %w", l[1], err)
		}
	}
	return nil
}

func device(root *mount.Root, dev int, d wire.Device) error {
	dirName, base := path.Split(path.Clean("/" + d.Path))
	dir := dev
	if dirName != "/dev/" {
		var err error
		if dir, err = root.Dir(dirName); err != nil {
			return err
		}
		defer unix.Close(dir)
	}
	mode := d.Mode & 0o7777
	switch d.Type {
	case "c", "u":
		mode |= unix.S_IFCHR
	case "b":
		mode |= unix.S_IFBLK
	case "p":
		mode |= unix.S_IFIFO
	default:
		return fault.New(fault.Invalid, "type %q is none of c, b, p", d.Type)
	}
	rdev := int(unix.Mkdev(uint32(d.Major), uint32(d.Minor)))
	err := unix.Mknodat(dir, base, mode, rdev)
	if err == unix.EEXIST {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != mode&unix.S_IFMT || st.Rdev != uint64(rdev) {
			return fault.New(fault.Exists, "the image has something else at this path")
		}
		err = unix.Fchmodat(dir, base, mode&0o7777, 0)
	}
	if err != nil {
		return err
	}
	if d.UID != 0 || d.GID != 0 {
		return unix.Fchownat(dir, base, int(d.UID), int(d.GID), unix.AT_SYMLINK_NOFOLLOW)
	}
	return nil
}

// console makes the terminal in the container's own devpts and shows it as /dev/console too.
func (s *setup) console(root *mount.Root) error {
	master, err := root.Open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return fault.Hint(err, "a terminal needs a devpts mount on /dev/pts")
	}
	if err := s.pty(master); err != nil {
		return err
	}
	at, err := root.File("/dev/console")
	if err != nil {
		return err
	}
	defer unix.Close(at)
	tree, err := mount.CloneFd(s.ptySlave, false)
	if err != nil {
		return fmt.Errorf("terminal for /dev/console: %w", err)
	}
	defer unix.Close(tree)
	return mount.Attach(tree, at)
}

// pty hands the master to the monitor and keeps the other end.
func (s *setup) pty(master int) error {
	defer unix.Close(master)
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("unlock terminal: %w", err)
	}
	slave, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return fmt.Errorf("open terminal: %w", errno)
	}
	s.ptySlave = int(slave)
	if e := s.Extra; e.Width > 0 && e.Height > 0 {
		if err := unix.IoctlSetWinsize(s.ptySlave, unix.TIOCSWINSZ, &unix.Winsize{Row: e.Height, Col: e.Width}); err != nil {
			return fmt.Errorf("set terminal size %dx%d: %w", e.Width, e.Height, err)
		}
	}
	_ = report(Report{Pty: true}, master)
	return nil
}

// terminal gives the process its controlling terminal, or makes the pipes it got its own, so that it can open
// /dev/stdout and /dev/stderr by name after it has dropped root.
func (s *setup) terminal() error {
	if !s.req.Terminal {
		for fd := range 3 {
			var st unix.Stat_t
			if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO && st.Uid != s.UID {
				_ = unix.Fchown(fd, int(s.UID), -1)
			}
		}
		return nil
	}
	if s.ptySlave < 0 {
		master, err := unix.Open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			master, err = unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		}
		if err != nil {
			return fault.Hint(&os.PathError{Op: "open", Path: "/dev/pts/ptmx", Err: err}, "a terminal needs a devpts mount on /dev/pts")
		}
		if err := s.pty(master); err != nil {
			return err
		}
	}
	if s.UID != 0 {
		if err := unix.Fchown(s.ptySlave, int(s.UID), -1); err != nil {
			return fmt.Errorf("give the terminal to uid %d: %w", s.UID, err)
		}
	}
	if err := unix.IoctlSetInt(s.ptySlave, unix.TIOCSCTTY, 0); err != nil {
		return fmt.Errorf("make it the controlling terminal: %w", err)
	}
	for fd := range 3 {
		if err := unix.Dup3(s.ptySlave, fd, 0); err != nil {
			return fmt.Errorf("terminal as descriptor %d: %w", fd, err)
		}
	}
	return unix.Close(s.ptySlave)
}
