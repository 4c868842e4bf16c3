package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// piece is how much of a file is written at once. Large writes let the page cache take large folios: on ext4 and kernel
// 6.18, 256 KiB at a time cost two thirds of what 32 KiB at a time do.
const piece = 256 << 10

// folder writes files below one directory, which no one else changes meanwhile. Each entry is made relative to its parent's
// descriptor, so that a file costs an open, a write, a time stamp and a close, and no walk.
//
// Names are strangers' words: the kernel resolves each parent within the root (openat2, RESOLVE_IN_ROOT), so that no link
// leads out of it. Needs: kernel 5.6.
type folder struct {
	root           int            // the directory
	open           map[string]int // parents that are in use, by name
	later          []directory    // what directories get when all is in them
	buf            []byte
	sums           *sums
	ownUid, ownGid int // whose new files are
}

// directory is what a directory gets at last: a set-group-ID bit or default ACL would rub off on what is made in it, and
// its time changes with it.
type directory struct {
	name string
	mode uint32
	uid  int
	gid  int
	when [2]unix.Timespec
	attr map[string]string
}

// maxOpen bounds the parents held open.
const maxOpen = 32

// maxLinks is how many symbolic links may lead to one another. Source: kernel, path_resolution(7), MAXSYMLINKS.
const maxLinks = 40

func openFolder(dir string) (*folder, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	return &folder{root: fd, open: map[string]int{}, buf: make([]byte, piece), ownUid: os.Geteuid(), ownGid: os.Getegid()}, nil
}

func (t *folder) close() {
	t.forget()
	unix.Close(t.root)
}

// forget closes the parents: the next entry finds them anew. Needed whenever something that had a name is replaced.
func (t *folder) forget() {
	for name, fd := range t.open {
		unix.Close(fd)
		delete(t.open, name)
	}
}

// parent returns a descriptor of a directory, which stays the folder's. Directories that are not there are made.
func (t *folder) parent(name string, links int) (int, error) {
	if name == "." {
		return t.root, nil
	}
	if fd, ok := t.open[name]; ok {
		return fd, nil
	}
	fd, err := t.walk(name)
	if errors.Is(err, unix.ENOENT) {
		if fd, err = t.make(name, links); err != nil {
			return -1, err
		}
	}
	if err != nil {
		return -1, err
	}
	if len(t.open) >= maxOpen {
		t.forget()
	}
	t.open[name] = fd
	return fd, nil
}

// walk opens a directory that is there.
func (t *folder) walk(name string) (int, error) {
	return unix.Openat2(t.root, name, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// make makes a directory and those above it, and opens it.
func (t *folder) make(name string, links int) (int, error) {
	up, err := t.parent(path.Dir(name), links)
	if err != nil {
		return -1, err
	}
	base := path.Base(name)
	err = unix.Mkdirat(up, base, 0o755)
	if errors.Is(err, unix.EEXIST) {
		// A link to what is not there yet, such as var/run -> /run before run: its target is made.
		target, err := readlink(up, base)
		if err != nil {
			return -1, err
		}
		if links++; links > maxLinks {
			return -1, unix.ELOOP
		}
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(name), target)
		}
		if _, err := t.parent(inside(target), links); err != nil {
			return -1, err
		}
	} else if err != nil {
		return -1, err
	}
	return t.walk(name)
}

// inside makes a path relative to the root, and "." of the root itself.
func inside(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" {
		return "."
	}
	return name
}

func readlink(dir int, base string) (string, error) {
	var buf [unix.PathMax]byte
	n, err := unix.Readlinkat(dir, base, buf[:])
	return string(buf[:max(n, 0)]), err
}

// add writes one entry.
func (t *folder) add(h *tar.Header, content io.Reader) error {
	if err := fine(h); err != nil {
		return err
	}
	name := inside(h.Name)
	if name == "." {
		if h.Typeflag == tar.TypeDir {
			t.finishLater(name, h)
		}
		return nil
	}
	up, err := t.parent(path.Dir(name), 0)
	if err != nil {
		return err
	}
	base := path.Base(name)
	if mark, ok := strings.CutPrefix(base, ".wh."); ok {
		if base == ".wh..wh..opq" {
			return opaque(up, ".")
		}
		return whiteout(up, mark)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return t.file(up, base, h, content)
	case tar.TypeDir:
		if err := t.directory(up, name); err != nil {
			return err
		}
		t.finishLater(name, h)
		return nil
	}
	err = t.special(up, base, h)
	if errors.Is(err, unix.EEXIST) {
		if err = t.clear(up, name); err == nil {
			if up, err = t.parent(path.Dir(name), 0); err == nil {
				err = t.special(up, base, h)
			}
		}
	}
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeLink { // what it names was dressed when it came, and may be a link
		return nil
	}
	return t.dress(up, base, h)
}

// fine refuses numbers that system calls would read as something else.
func fine(h *tar.Header) error {
	if h.Uid < 0 || h.Gid < 0 || h.Uid > 1<<32-2 || h.Gid > 1<<32-2 {
		return fault.New(fault.Invalid, "its owner %d:%d cannot be", h.Uid, h.Gid)
	}
	return nil
}

func (t *folder) file(up int, base string, h *tar.Header, content io.Reader) error {
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(up, base, flags, 0o600)
	if errors.Is(err, unix.EEXIST) {
		if err = t.clear(up, inside(h.Name)); err == nil {
			if up, err = t.parent(path.Dir(inside(h.Name)), 0); err == nil {
				fd, err = unix.Openat(up, base, flags, 0o600)
			}
		}
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	t.sums.begin()
	for left := h.Size; left > 0; {
		p := t.buf[:min(left, piece)]
		if n, err := io.ReadFull(content, p); err != nil {
			return fmt.Errorf("%d of %d bytes are there: %w", h.Size-left+int64(n), h.Size, err)
		}
		if err := write(fd, p); err != nil {
			return err
		}
		t.sums.add(p)
		left -= int64(len(p))
	}
	t.sums.end(inside(h.Name), h.Size)
	if h.Uid != t.ownUid || h.Gid != t.ownGid {
		if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
			return err
		}
	}
	if err := attributes(at(up, base), h.PAXRecords); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, mode(h)); err != nil { // last: a change of owner drops set-user-ID
		return err
	}
	when := times(h)
	return unix.UtimesNanoAt(up, base, when[:], unix.AT_SYMLINK_NOFOLLOW)
}

func write(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// directory makes a directory, or takes the one that is there.
func (t *folder) directory(up int, name string) error {
	base := path.Base(name)
	err := unix.Mkdirat(up, base, 0o755)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(up, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	t.sums.gone(name)
	if err := unix.Unlinkat(up, base, 0); err != nil {
		return err
	}
	if err := unix.Mkdirat(up, base, 0o755); err != nil {
		return err
	}
	if hides(&st) {
		// The directory below is deleted and a new one comes in its place: the old content must not shine through.
		return opaque(up, base)
	}
	return nil
}

// hides recognises a whiteout. Source: kernel overlayfs document, "whiteouts and opaque directories".
func hides(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

// special makes what is neither a file nor a directory.
func (t *folder) special(up int, base string, h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeSymlink:
		return unix.Symlinkat(h.Linkname, up, base)
	case tar.TypeLink:
		target := inside(h.Linkname)
		if target == inside(h.Name) {
			return fault.New(fault.Invalid, "a hard link to itself")
		}
		dir, err := t.walk(path.Dir(target))
		if err != nil {
			return fmt.Errorf("hard link to %q: %w", h.Linkname, err)
		}
		defer unix.Close(dir)
		err = unix.Linkat(dir, path.Base(target), up, base, 0)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("hard link to %q: %w", h.Linkname, err)
		}
		return err
	case tar.TypeFifo:
		return unix.Mknodat(up, base, unix.S_IFIFO, 0)
	case tar.TypeChar, tar.TypeBlock:
		if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor > 1<<12-1 || h.Devminor > 1<<20-1 { // the kernel's own bounds
			return fault.New(fault.Invalid, "a device %d:%d, which cannot be", h.Devmajor, h.Devminor)
		}
		kind := uint32(unix.S_IFCHR)
		if h.Typeflag == tar.TypeBlock {
			kind = unix.S_IFBLK
		}
		return unix.Mknodat(up, base, kind, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	}
	return fault.New(fault.Invalid, "an entry of type %q, which no layer has", h.Typeflag)
}

// clear removes what has a name that the entry wants: a later entry wins.
func (t *folder) clear(up int, name string) error {
	base := path.Base(name)
	t.sums.gone(name)
	err := unix.Unlinkat(up, base, 0)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
		err = os.RemoveAll(at(up, base)) // before forget, which may close up
	}
	if err != nil {
		return err
	}
	t.forget()
	return nil
}

// at is a path of an entry for the few calls that take no descriptor.
func at(up int, base string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", up, base) }

// dress gives a special file its owner, attributes, mode and times.
func (t *folder) dress(up int, base string, h *tar.Header) error {
	if h.Uid != t.ownUid || h.Gid != t.ownGid {
		if err := unix.Fchownat(up, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	if err := attributes(at(up, base), h.PAXRecords); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(up, base, mode(h), 0); err != nil {
			return err
		}
	}
	when := times(h)
	return unix.UtimesNanoAt(up, base, when[:], unix.AT_SYMLINK_NOFOLLOW)
}

func (t *folder) finishLater(name string, h *tar.Header) {
	d := directory{name: name, mode: mode(h), uid: h.Uid, gid: h.Gid, when: times(h)}
	for key, value := range h.PAXRecords {
		if strings.HasPrefix(key, xattrKey) {
			if d.attr == nil {
				d.attr = map[string]string{}
			}
			d.attr[key] = value
		}
	}
	t.later = append(t.later, d)
}

// finish dresses the directories. One that a later entry replaced is passed over.
func (t *folder) finish() error {
	for _, d := range t.later {
		up, err := t.walk(path.Dir(d.name))
		if err != nil {
			continue
		}
		err = d.dress(up, path.Base(d.name))
		unix.Close(up)
		if err != nil {
			return fmt.Errorf("directory %q: %w", d.name, err)
		}
	}
	return nil
}

func (d *directory) dress(up int, base string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(up, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil //nolint:nilerr // replaced since
	}
	if int(st.Uid) != d.uid || int(st.Gid) != d.gid {
		if err := unix.Fchownat(up, base, d.uid, d.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	if err := attributes(at(up, base), d.attr); err != nil {
		return err
	}
	if st.Mode&0o7777 != d.mode {
		if err := unix.Fchmodat(up, base, d.mode, 0); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(up, base, d.when[:], unix.AT_SYMLINK_NOFOLLOW)
}

// xattrKey begins the PAX records of extended attributes. Source: star's archive format, as all image tools write it.
const xattrKey = "SCHILY.xattr."

// attributes sets extended attributes; those that the file system does not have are left out.
func attributes(at string, records map[string]string) error {
	for key, value := range records {
		name, ok := strings.CutPrefix(key, xattrKey)
		if !ok {
			continue
		}
		err := unix.Lsetxattr(at, name, []byte(value), 0)
		switch {
		case err == nil, errors.Is(err, unix.ENOTSUP):
		case errors.Is(err, unix.EPERM) && strings.HasPrefix(name, "user."): // only files and directories have these: xattr(7)
		default:
			return fmt.Errorf("attribute %q: %w", name, err)
		}
	}
	return nil
}

// whiteout hides what the layers below have under a name. Marks speak of the layers below only, so what this layer itself
// brings under a marked name stays, whichever came first.
func whiteout(up int, base string) error {
	if base == "" || base == "." || base == ".." {
		return fault.New(fault.Invalid, "a mark of deletion without a name")
	}
	if strings.HasPrefix(base, ".wh.") {
		return nil // book-keeping of AUFS
	}
	err := unix.Mknodat(up, base, unix.S_IFCHR, 0)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(up, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return opaque(up, base)
	}
	return nil
}

func opaque(up int, base string) error {
	if err := unix.Lsetxattr(at(up, base), overlayTag+"opaque", []byte("y"), 0); err != nil {
		return fmt.Errorf("mark directory opaque: %w", err)
	}
	return nil
}

// mode is what chmod takes; a tar's mode is Linux's own.
func mode(h *tar.Header) uint32 { return uint32(h.Mode) & 0o7777 }

// times are an entry's times of access and change. What no file system keeps becomes 1970.
func times(h *tar.Header) [2]unix.Timespec {
	access := h.AccessTime
	if access.Before(h.ModTime) {
		access = h.ModTime
	}
	return [2]unix.Timespec{bound(access), bound(h.ModTime)}
}

func bound(t time.Time) unix.Timespec {
	if s := t.Unix(); s < 0 || s > 1<<34-1 { // ext4 ends in 2446
		return unix.Timespec{}
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}
