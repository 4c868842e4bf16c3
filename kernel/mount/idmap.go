package mount

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// Idmap shows the files of a detached mount with the owners that the user namespace behind the descriptor user maps
// theirs to: what belongs to 0 on the disk belongs to the namespace's 0. Only the topmost mount of the tree changes.
// Errors: Unsupported if the filesystem cannot (tmpfs before kernel 6.3, overlay, most network filesystems).
// Source: mount_setattr(2), "ID-mapped mounts". Needs: kernel 5.12.
func Idmap(tree, user int) error { return idmap(tree, user, 0) }

// IdmapAll is Idmap for the tree's mounts below too.
func IdmapAll(tree, user int) error { return idmap(tree, user, unix.AT_RECURSIVE) }

func idmap(tree, user int, flags uint) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(user)}
	err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|flags, &attr)
	if errors.Is(err, unix.EINVAL) {
		return fault.New(fault.Unsupported, "id-mapped mount: the filesystem or its own mapping does not allow it: %w", err)
	}
	if err != nil {
		return fault.As(kindOf(err), fmt.Errorf("id-mapped mount: %w", err))
	}
	return nil
}

// IdmapOver lays an id-mapped view of a directory over itself, in this mount namespace. Relative names are taken as
// every call takes them.
func IdmapOver(dir string, user int) error {
	tree, err := Clone(dir, false)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := Idmap(tree, user); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	at, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(at)
	return Attach(tree, at)
}

// RootOf makes a Root of a directory's descriptor, which it takes over.
func RootOf(fd int) *Root { return &Root{fd} }
