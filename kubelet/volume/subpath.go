package volume

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"worknode/fault"
	"worknode/kernel/mount"
)

// SubPath makes one mount's subPath ready and returns the path to give to the runtime. i counts the container's
// volumeMounts; sub is the path inside the volume with its variables expanded (translate.SubPath).
//
// A container can put symlinks into its volume at any time, so a path that was checked proves nothing. The path is
// walked inside the volume without ever leaving it, and what was reached is held open and bind-mounted: the runtime gets
// the mount. A missing directory is made, with the mode and owner of the volume.
// Errors: Invalid if sub leads out of the volume. Repeat: safe, the mount is made anew, so that a restarted container
// sees a configMap's new file. Crash: Unmount finds the mount by its place.
func (v *Volumes) SubPath(pod *v1.Pod, c *v1.Container, i int, sub string) (string, error) {
	vm := &c.VolumeMounts[i]
	for what, name := range map[string]string{"pod uid": string(pod.UID), "container": c.Name, "volume": vm.Name} {
		if err := plainName(what, name); err != nil {
			return "", err
		}
	}
	volume, ok := v.Paths(pod)[vm.Name]
	if !ok {
		return "", fault.New(fault.NotFound, "container %s: volume %q does not exist", c.Name, vm.Name)
	}
	defer v.lock(pod.UID)()
	from, dir, err := openInside(volume, sub)
	if err != nil {
		return "", err
	}
	defer from.Close()
	target := filepath.Join(v.podDir(pod.UID), "volume-subpaths", vm.Name, c.Name, strconv.Itoa(i))
	if err := place(target, dir); err != nil {
		return "", diskFault(err)
	}
	if err := bindFile(from, target); err != nil {
		return "", fault.New(fault.Temporary, "subPath %q of volume %s: %w", sub, vm.Name, err)
	}
	return target, nil
}

// openInside opens sub below volume, making it if it is missing. Symlinks are followed as if the volume were the root of
// the file system: they cannot lead out of it.
func openInside(volume, sub string) (f *os.File, dir bool, err error) {
	root, err := mount.OpenRoot(volume)
	if err != nil {
		if errors.Is(err, unix.ENOTDIR) {
			return nil, false, fault.New(fault.Invalid, "subPath %q: %s is not a directory", sub, volume)
		}
		return nil, false, diskFault(err)
	}
	defer root.Close()
	fd, err := root.Open(sub, unix.O_PATH, 0)
	if os.IsNotExist(err) {
		if err = makeInside(volume, sub); err == nil {
			fd, err = root.Open(sub, unix.O_PATH, 0)
		}
	}
	if err != nil {
		return nil, false, fault.New(fault.Invalid, "subPath %q of %s: %w", sub, volume, err)
	}
	f = os.NewFile(uintptr(fd), sub)
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, false, diskFault(err)
	}
	return f, info.IsDir(), nil
}

// makeInside makes the missing directories of sub like the volume itself: a container's user that may write there may
// also write here.
func makeInside(volume, sub string) error {
	root, err := os.OpenRoot(volume)
	if err != nil {
		return err
	}
	defer root.Close()
	like, err := root.Stat(".")
	if err != nil {
		return err
	}
	owner, path := owner(like), ""
	for part := range strings.SplitSeq(filepath.Clean(sub), "/") {
		path = filepath.Join(path, part)
		err := root.Mkdir(path, 0o700)
		if os.IsExist(err) {
			continue
		}
		if err == nil {
			err = root.Lchown(path, int(owner.Uid), int(owner.Gid))
		}
		if err == nil {
			err = root.Chmod(path, like.Mode()&(os.ModePerm|os.ModeSetgid|os.ModeSticky))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// place makes an empty directory or file to mount on, without what was mounted there before.
func place(target string, dir bool) error {
	if err := mount.Detach(target); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return err
	}
	if err := os.Remove(target); err != nil && !os.IsNotExist(err) {
		return err
	}
	if dir {
		return os.Mkdir(target, 0o750)
	}
	return os.WriteFile(target, nil, 0o640)
}

func bindFile(from *os.File, target string) error {
	tree, err := mount.CloneFd(int(from.Fd()), true)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	at, err := os.OpenFile(target, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer at.Close()
	return mount.Attach(tree, int(at.Fd()))
}
