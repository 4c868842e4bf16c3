package inside

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"worknode/kernel/mount"
)

// copyUp fills a new tmpfs with what it covers: the mount option tmpcopyup. Both are directories; links are copied as
// links, so nothing outside is read. Devices and sockets are left out: an image has no use for them in a tmpfs.
func copyUp(from, to int) error {
	source := mount.FdPath(from) + "/"
	return filepath.WalkDir(source, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return copyOne(name, mount.FdPath(to)+"/"+strings.TrimPrefix(name, source))
	})
}

func copyOne(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: from, Err: err}
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err = os.Mkdir(to, 0o700); os.IsExist(err) {
			err = nil
		}
	case unix.S_IFLNK:
		var target string
		if target, err = os.Readlink(from); err == nil {
			err = os.Symlink(target, to)
		}
	case unix.S_IFREG:
		err = copyFile(from, to)
	default:
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	return unix.Chmod(to, st.Mode&0o7777)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if end := out.Close(); err == nil {
		err = end
	}
	return err
}
