package act

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// maxLinks bounds the symbolic links followed in one name, as the kernel does.
const maxLinks = 40

// view reads an image as a container will see it, without mounting it: the layers' directories merged by overlayfs's
// own rules (whiteouts, opaque directories), symbolic links resolved inside the image and never outside.
// Image layers are immutable, so there is nobody to race with.
// Source: kernel, Documentation/filesystems/overlayfs.rst.
type view []string // directories, topmost first

// read returns the content of a regular file.
// Errors: fs.ErrNotExist; Invalid when it is not a regular file or longer than limit bytes.
func (v view) read(name string, limit int64) ([]byte, error) {
	found, err := v.find(name)
	if err != nil {
		return nil, err
	}
	info, err := os.Lstat(found)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fault.New(fault.Invalid, "image file %s is not a regular file", name)
	}
	if info.Size() > limit {
		return nil, fault.New(fault.Invalid, "image file %s has %d bytes, the limit is %d", name, info.Size(), limit)
	}
	return os.ReadFile(found)
}

// Subtree is what a name inside an image means on the host: the directories to merge, topmost first, or one file.
// base and layers locate the image; an empty name is the whole image. Symbolic links are resolved inside the image.
// Errors: fs.ErrNotExist.
func Subtree(base string, layers []string, name string) ([]string, error) {
	file, dirs, err := newView(base, layers).look(name)
	if file != "" {
		return []string{file}, err
	}
	return dirs, err
}

func newView(base string, layers []string) view {
	v := make(view, len(layers))
	for i, l := range layers {
		v[i] = base + "/" + l
	}
	return v
}

// find returns the host path of a name in the merged image; the last component is never a symbolic link.
func (v view) find(name string) (string, error) {
	file, dir, err := v.look(name)
	if err == nil && file == "" {
		file = dir[0]
	}
	return file, err
}

// look finds either a file or a merged directory.
func (v view) look(name string) (string, view, error) {
	links := 0
	todo := strings.Split(strings.Trim(path.Clean("/"+name), "/"), "/")
	dirs := []view{v} // the merged directories on the way, root first
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		here := dirs[len(dirs)-1]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(dirs) > 1 {
				dirs = dirs[:len(dirs)-1]
			}
			continue
		}
		file, next, err := here.step(part)
		if err != nil {
			return "", nil, &fs.PathError{Op: "look up in image", Path: name, Err: err}
		}
		if next != nil {
			dirs = append(dirs, next)
			continue
		}
		target, err := os.Readlink(file)
		if err != nil { // no link: the end of the name, or a file where a directory should be
			if len(todo) > 0 {
				return "", nil, &fs.PathError{Op: "look up in image", Path: name, Err: syscall.ENOTDIR}
			}
			return file, nil, nil
		}
		if links++; links > maxLinks {
			return "", nil, &fs.PathError{Op: "look up in image", Path: name, Err: syscall.ELOOP}
		}
		if path.IsAbs(target) {
			dirs = dirs[:1]
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return "", dirs[len(dirs)-1], nil
}

// step looks one component up: either a file (or link) of the topmost layer that has it, or the merged directory.
func (v view) step(part string) (file string, dir view, err error) {
	for _, layer := range v {
		p := filepath.Join(layer, part)
		info, err := os.Lstat(p)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return "", nil, err
		case whiteout(info):
			return "", dir, orAbsent(dir)
		case !info.IsDir():
			if dir != nil {
				return "", dir, nil // a directory above hides it
			}
			return p, nil, nil
		}
		dir = append(dir, p)
		if opaque(p) {
			break
		}
	}
	return "", dir, orAbsent(dir)
}

func orAbsent(dir view) error {
	if dir == nil {
		return fs.ErrNotExist
	}
	return nil
}

func whiteout(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Mode&syscall.S_IFMT == syscall.S_IFCHR && st.Rdev == 0
}

func opaque(dir string) bool {
	var value [1]byte
	n, err := unix.Lgetxattr(dir, "trusted.overlay.opaque", value[:])
	return err == nil && n == 1 && value[0] == 'y'
}
