package volume

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Names inside a volume, as upstream has them: programs that wait for changes watch "..data".
const (
	dataLink = "..data"
	dataTemp = "..data_tmp"
)

// write makes dir contain exactly p, in one step for whoever reads it: the files lie in a directory of their own,
// ..data links to it, user-visible names link into ..data, and a change is one rename of ..data.
// gid, if not negative, is the group that may read all of it. Nothing is written if nothing changed.
// Crash: the next write completes it; leftovers start with two dots and are removed then.
func write(dir string, p payload, gid int, now time.Time) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	have, _ := os.Readlink(filepath.Join(dir, dataLink))
	if have == "" || !same(filepath.Join(dir, have), p, gid) {
		fresh, err := writeFiles(dir, p, gid, now)
		if err != nil {
			return err
		}
		temp := filepath.Join(dir, dataTemp)
		if err := os.Remove(temp); err != nil && !os.IsNotExist(err) {
			return err
		}
		if err := os.Symlink(fresh, temp); err != nil {
			return err
		}
		if err := os.Rename(temp, filepath.Join(dir, dataLink)); err != nil {
			return err
		}
		have = fresh
	}
	return tidy(dir, p, have)
}

// writeFiles puts p into a new directory of dir and returns its name.
func writeFiles(dir string, p payload, gid int, now time.Time) (string, error) {
	fresh, err := os.MkdirTemp(dir, now.UTC().Format("..2006_01_02_15_04_05.*"))
	if err != nil {
		return "", err
	}
	if err = own(fresh, 0, gid, 0o755); err == nil {
		err = fill(fresh, p, gid)
	}
	if err != nil {
		os.RemoveAll(fresh)
		return "", err
	}
	return filepath.Base(fresh), nil
}

func fill(root string, p payload, gid int) error {
	for path, f := range p {
		full := filepath.Join(root, path)
		if parent := filepath.Dir(path); parent != "." {
			if err := directories(root, parent, gid); err != nil {
				return err
			}
		}
		if err := os.WriteFile(full, f.data, 0o600); err != nil {
			return err
		}
		if err := own(full, f.uid, gid, fileMode(f, gid)); err != nil {
			return err
		}
	}
	return nil
}

func directories(root, path string, gid int) error {
	at := root
	for part := range strings.SplitSeq(path, "/") {
		at = filepath.Join(at, part)
		err := os.Mkdir(at, 0o755)
		if os.IsExist(err) {
			continue
		}
		if err == nil {
			err = own(at, 0, gid, 0o755)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// own sets owner and mode, free of the umask. Without a group the owner is root's.
func own(path string, uid, gid int, m os.FileMode) error {
	if uid != 0 || gid > 0 {
		if err := os.Lchown(path, uid, max(gid, 0)); err != nil {
			return err
		}
	}
	return os.Chmod(path, m)
}

func fileMode(f file, gid int) os.FileMode {
	if gid >= 0 {
		return f.mode | 0o440
	}
	return f.mode
}

// same tells whether the files below root are exactly p.
func same(root string, p payload, gid int) bool {
	found := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		want, ok := p[rel]
		info, err := d.Info()
		if !ok || err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != fileMode(want, gid) {
			return fs.SkipAll
		}
		owner := info.Sys().(*syscall.Stat_t)
		if int(owner.Uid) != want.uid || int(owner.Gid) != max(gid, 0) || info.Size() != int64(len(want.data)) {
			return fs.SkipAll
		}
		data, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(data, want.data) {
			return fs.SkipAll
		}
		found++
		return nil
	})
	return err == nil && found == len(p)
}

// tidy makes the user-visible links and removes those that lead nowhere now, and directories that are not have.
func tidy(dir string, p payload, have string) error {
	want := make(map[string]bool, len(p))
	for path := range p {
		first, _, _ := strings.Cut(path, "/")
		if want[first] {
			continue
		}
		want[first] = true
		link, target := filepath.Join(dir, first), filepath.Join(dataLink, first)
		if now, err := os.Readlink(link); err == nil && now == target {
			continue
		}
		if err := os.RemoveAll(link); err != nil {
			return err
		}
		if err := os.Symlink(target, link); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name := e.Name(); !want[name] && name != dataLink && name != have {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}
