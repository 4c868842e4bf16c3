// Package mount wraps the kernel's descriptor-based mount calls: a mount is built detached, completed, and only then
// attached to a place that was looked up inside a root, so a hostile image can never redirect it with a symlink.
// It decides nothing about which mounts a container gets.
// Source: open_tree(2), mount_setattr(2), move_mount(2), openat2(2). Needs: kernel 5.12.
package mount

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// Root is a directory that paths are resolved inside of: no symlink, absolute or not, leads out of it.
type Root struct{ fd int }

// OpenRoot opens dir as a Root. The caller closes it.
func OpenRoot(dir string) (*Root, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	return &Root{fd}, nil
}

// Fd is the root directory's descriptor, owned by r.
func (r *Root) Fd() int { return r.fd }

// Close closes the descriptor.
func (r *Root) Close() { unix.Close(r.fd) }

// Open opens name inside r; flags get O_CLOEXEC. The result is a raw descriptor that the caller closes.
// Errors: os.ErrNotExist and the kernel's others, naming the path.
func (r *Root) Open(name string, flags int, mode uint32) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	if flags&unix.O_CREAT != 0 {
		how.Mode = uint64(mode)
	}
	for {
		// EAGAIN: a rename somewhere in the system raced the lookup; the kernel asks to try again.
		fd, err := unix.Openat2(r.fd, name, &how)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: name, Err: err}
		}
		return fd, nil
	}
}

// Dir opens the directory name inside r (O_PATH), making missing parts with mode 0755. Dangling symlinks are followed
// by making what they point to, still inside r.
func (r *Root) Dir(name string) (int, error) { return r.dir(name, 0) }

func (r *Root) dir(name string, depth int) (int, error) {
	if depth > 40 {
		return -1, &os.PathError{Op: "mkdir", Path: name, Err: unix.ELOOP}
	}
	fd, err := r.Open(name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return fd, err
	}
	clean := path.Clean("/" + name)
	if clean == "/" {
		return -1, err
	}
	parentName, base := path.Split(clean)
	parent, err := r.dir(parentName, depth+1)
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	err = unix.Mkdirat(parent, base, 0o755)
	if err == unix.EEXIST {
		if to, ok := readlinkat(parent, base); ok {
			if !path.IsAbs(to) {
				to = path.Join(parentName, to)
			}
			return r.dir(to, depth+1)
		}
	} else if err != nil {
		return -1, &os.PathError{Op: "mkdir", Path: clean, Err: err}
	}
	return r.Open(clean, unix.O_PATH|unix.O_DIRECTORY, 0)
}

// File opens the file name inside r (O_PATH), making it empty with mode 0644, and its directories, if missing.
func (r *Root) File(name string) (int, error) {
	fd, err := r.Open(name, unix.O_PATH, 0)
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return fd, err
	}
	parentName, base := path.Split(path.Clean("/" + name))
	parent, err := r.Dir(parentName)
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	if to, ok := readlinkat(parent, base); ok {
		if !path.IsAbs(to) {
			to = path.Join(parentName, to)
		}
		name = to
		if dir, err := r.Dir(path.Dir(path.Clean("/" + to))); err == nil {
			unix.Close(dir)
		}
	}
	made, err := r.Open(name, unix.O_CREAT|unix.O_WRONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0o644)
	if err != nil {
		return -1, err
	}
	unix.Close(made)
	return r.Open(name, unix.O_PATH, 0)
}

func readlinkat(dir int, name string) (string, bool) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", false
	}
	return string(buf[:n]), true
}

// Clone returns a detached copy of the mount that source lies on, starting at source (a bind mount in the making).
// With recursive it takes the mounts below along. source is followed if it is a symlink.
func Clone(source string, recursive bool) (int, error) {
	return cloneAt(unix.AT_FDCWD, source, recursive, 0)
}

// CloneFd is Clone for an open descriptor.
func CloneFd(fd int, recursive bool) (int, error) {
	return cloneAt(fd, "", recursive, unix.AT_EMPTY_PATH)
}

func cloneAt(fd int, source string, recursive bool, flags uint) (int, error) {
	flags |= unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	tree, err := unix.OpenTree(fd, source, flags)
	if err != nil {
		return -1, &os.PathError{Op: "open_tree", Path: source, Err: err}
	}
	return tree, nil
}

// Attrs are MS_* flags as mount_setattr wants them: what to set, and the atime bits to clear first.
func Attrs(flags uintptr) (set, clear uint64) {
	for _, a := range [...]struct {
		ms   uintptr
		attr uint64
	}{
		{unix.MS_RDONLY, unix.MOUNT_ATTR_RDONLY}, {unix.MS_NOSUID, unix.MOUNT_ATTR_NOSUID},
		{unix.MS_NODEV, unix.MOUNT_ATTR_NODEV}, {unix.MS_NOEXEC, unix.MOUNT_ATTR_NOEXEC},
		{unix.MS_NODIRATIME, unix.MOUNT_ATTR_NODIRATIME}, {unix.MS_NOSYMFOLLOW, unix.MOUNT_ATTR_NOSYMFOLLOW},
	} {
		if flags&a.ms != 0 {
			set |= a.attr
		}
	}
	switch {
	case flags&unix.MS_NOATIME != 0:
		set, clear = set|unix.MOUNT_ATTR_NOATIME, unix.MOUNT_ATTR__ATIME
	case flags&unix.MS_STRICTATIME != 0:
		set, clear = set|unix.MOUNT_ATTR_STRICTATIME, unix.MOUNT_ATTR__ATIME
	case flags&unix.MS_RELATIME != 0:
		clear = unix.MOUNT_ATTR__ATIME
	}
	return set, clear
}

// Change applies MS_* flags (they are only added: a source that is nosuid stays nosuid) and a propagation type
// (MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE or 0) to the mount fd refers to.
func Change(fd int, flags uintptr, propagation uintptr, recursive bool) error {
	set, clear := Attrs(flags)
	if set == 0 && clear == 0 && propagation == 0 {
		return nil
	}
	at := uint(unix.AT_EMPTY_PATH)
	if recursive {
		at |= unix.AT_RECURSIVE
	}
	attr := unix.MountAttr{Attr_set: set, Attr_clr: clear, Propagation: uint64(propagation)}
	if err := unix.MountSetattr(fd, "", at, &attr); err != nil {
		return fmt.Errorf("mount_setattr set=%#x propagation=%#x: %w", set, propagation, err)
	}
	return nil
}

// ChangeAttrs sets and clears MOUNT_ATTR_* of the mount fd refers to and, with recursive, of all below it.
func ChangeAttrs(fd int, set, clear uint64, recursive bool) error {
	if set|clear == 0 {
		return nil
	}
	at := uint(unix.AT_EMPTY_PATH)
	if recursive {
		at |= unix.AT_RECURSIVE
	}
	attr := unix.MountAttr{Attr_set: set, Attr_clr: clear}
	if err := unix.MountSetattr(fd, "", at, &attr); err != nil {
		return fmt.Errorf("mount_setattr set=%#x clear=%#x: %w", set, clear, err)
	}
	return nil
}

// Attach mounts the detached tree at the place fd (O_PATH) stands for.
func Attach(tree, at int) error {
	err := unix.MoveMount(tree, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// FdPath is a path by which older calls reach an open descriptor; the host's /proc must be in view.
func FdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// Bind makes the one-step bind mount of source on target, with MS_* flags and a recursive clone when asked.
func Bind(source, target string, flags uintptr, recursive bool) error {
	tree, err := Clone(source, recursive)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := Change(tree, flags, 0, false); err != nil {
		return fmt.Errorf("bind %s: %w", source, err)
	}
	at, err := unix.Open(target, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: target, Err: err}
	}
	defer unix.Close(at)
	if err := Attach(tree, at); err != nil {
		return fmt.Errorf("bind %s on %s: %w", source, target, err)
	}
	return nil
}

// Tmpfs mounts a tmpfs on target; options are the kernel's (size=…,mode=…).
func Tmpfs(target, options string, flags uintptr) error {
	if err := unix.Mount("tmpfs", target, "tmpfs", flags, options); err != nil {
		return fmt.Errorf("mount tmpfs on %s (%s): %w", target, options, err)
	}
	return nil
}

// Detach unmounts target lazily: users of the mount keep it until they are done. Not mounted or absent is success.
func Detach(target string) error {
	err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	return nil
}

// PivotTo makes the directory that root stands for the root of this mount namespace and drops the old one.
// Every mount of the old tree must be private or a slave, or the host would see it unmounted.
// It changes the working directory to the new root. Source: pivot_root(2), "pivot_root(".", ".")".
func PivotTo(root int) error {
	old, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the old root: %w", err)
	}
	defer unix.Close(old)
	if err := unix.Fchdir(root); err != nil {
		return fmt.Errorf("enter the new root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Fchdir(old); err != nil {
		return fmt.Errorf("enter the old root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	return unix.Chdir("/")
}

// ChangeRoot makes the directory that root stands for the root of this process, for a mount namespace that others share.
func ChangeRoot(root int) error {
	if err := unix.Fchdir(root); err != nil {
		return fmt.Errorf("enter the new root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return nil
}

// Frozen opens a program so that nobody who executes it can write to it through /proc/PID/exe: the descriptor lies on a
// read-only mount of its own. The caller closes it. Source: CVE-2019-5736.
func Frozen(program string) (*os.File, error) {
	tree, err := Clone(program, false)
	if err != nil {
		return nil, err
	}
	if err := Change(tree, unix.MS_RDONLY, 0, false); err != nil {
		unix.Close(tree)
		return nil, err
	}
	return os.NewFile(uintptr(tree), program), nil
}

// Overlay mounts an overlay on target (a path relative to the working directory, as are the directories named).
// lower is topmost first; with an empty upper the overlay is read-only. volatile skips all syncing, which is right for
// a layer that does not outlive a reboot, and is dropped on kernels that lack it (before 5.10).
// Errors: Invalid if the kernel refuses the options; Unsupported on kernels before 6.5 if the names exceed a page.
// Source: kernel overlayfs.rst.
func Overlay(target string, lower []string, upper, work string, volatile bool) error {
	opts, err := overlayOptions(lower, upper, work)
	if err != nil {
		return err
	}
	if upper != "" && volatile {
		// A volatile overlay leaves this mark and refuses to be mounted again while it is there.
		_ = unix.Unlink(work + "/work/incompat/volatile/dirty")
		_ = unix.Rmdir(work + "/work/incompat/volatile")
		err := overlay(target, opts+",volatile", lower, upper, work, true)
		if !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	return overlay(target, opts, lower, upper, work, false)
}

func overlayOptions(lower []string, upper, work string) (string, error) {
	esc := strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`).Replace
	if len(lower) == 0 {
		return "", fault.New(fault.Invalid, "overlay: no lower directory")
	}
	var b strings.Builder
	b.WriteString("lowerdir=")
	for i, l := range lower {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(esc(l))
	}
	if upper != "" {
		b.WriteString(",upperdir=" + esc(upper) + ",workdir=" + esc(work))
	} else if len(lower) == 1 {
		// The kernel wants two layers without an upper one; naming the same twice is refused, an empty one is not at hand.
		return "", fault.New(fault.Invalid, "overlay: a read-only overlay needs two lower directories; bind-mount a single one")
	}
	return b.String(), nil
}

func overlay(target, opts string, lower []string, upper, work string, volatile bool) error {
	if len(opts) < os.Getpagesize()-1 {
		if err := unix.Mount("overlay", target, "overlay", 0, opts); err != nil {
			return fault.As(kindOf(err), fmt.Errorf("mount overlay on %s (%s): %w", target, opts, err))
		}
		return nil
	}
	return overlayByParts(target, lower, upper, work, volatile)
}

// overlayByParts gives the kernel one layer at a time, for lists that exceed a page. Needs: kernel 6.5 (lowerdir+).
func overlayByParts(target string, lower []string, upper, work string, volatile bool) error {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fs)
	set := func(key, value string) {
		if err == nil {
			if err = unix.FsconfigSetString(fs, key, value); err != nil {
				err = fault.As(kindOf(err), fmt.Errorf("overlay option %s=%s: %w", key, value, err))
			}
		}
	}
	for _, l := range lower {
		set("lowerdir+", l)
	}
	if errors.Is(err, unix.EINVAL) && strings.Contains(said(fs), "Legacy") {
		return fault.New(fault.Unsupported, "overlay of %d layers: their names exceed a page of options, and this kernel takes no more (kernel 6.5 does): %w", len(lower), err)
	}
	if upper != "" {
		set("upperdir", upper)
		set("workdir", work)
	}
	if err == nil && volatile {
		err = unix.FsconfigSetFlag(fs, "volatile")
	}
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if err != nil {
		return fmt.Errorf("overlay of %d layers: %w", len(lower), err)
	}
	tree, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("fsmount overlay: %w", err)
	}
	defer unix.Close(tree)
	at, err := unix.Open(target, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: target, Err: err}
	}
	defer unix.Close(at)
	return Attach(tree, at)
}

// said reads what the kernel has to say about the last refusal. Source: fsopen(2), "Message retrieval interface".
func said(fs int) string {
	var b [256]byte
	n, _ := unix.Read(fs, b[:])
	return string(b[:max(n, 0)])
}

// Supported asks whether the kernel can mount filesystems of a type, loading its module if need be. It mounts nothing.
// Errors: Unsupported if it cannot. Source: fsopen(2), ENODEV.
func Supported(fstype string) error {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err == unix.ENODEV {
		return fault.New(fault.Unsupported, "this kernel has no filesystem %s: %w", fstype, err)
	}
	if err != nil {
		return fault.As(kindOf(err), fmt.Errorf("fsopen %s: %w", fstype, err))
	}
	unix.Close(fs)
	return nil
}

func kindOf(err error) fault.Kind {
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return fault.Invalid
	case errors.Is(err, unix.EBUSY):
		return fault.Busy
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fault.Denied
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.ENOMEM):
		return fault.Exhausted
	}
	return fault.Unknown
}
