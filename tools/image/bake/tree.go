package bake

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// tree is the content of a layer by path, without a leading slash. Parents are implied.
type tree map[string]node

type node struct {
	mode os.FileMode
	body []byte
	link string // target of a symlink
}

// addAll takes a file, or a directory with all in it, from this machine.
func (t tree) addAll(from, to string) error {
	return filepath.WalkDir(from, func(at string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, at)
		if err != nil {
			return err
		}
		if at == from { // a link given by name stands for what it leads to
			return t.add(at, path.Join(to, rel), os.Stat)
		}
		return t.add(at, path.Join(to, rel), os.Lstat)
	})
}

func (t tree) add(from, to string, stat func(string) (os.FileInfo, error)) error {
	st, err := stat(from)
	if err != nil {
		return err
	}
	n := node{mode: st.Mode()}
	switch {
	case st.Mode().IsRegular():
		n.body, err = os.ReadFile(from)
	case st.Mode()&os.ModeSymlink != 0:
		n.link, err = os.Readlink(from)
	case !st.IsDir():
		return fmt.Errorf("%s: neither file, directory nor link", from)
	}
	if to != "." && to != "" {
		t[to] = n
	}
	return err
}

// fromDir takes one path of a file system below root, and what it leads to if it is a link.
func fromDir(root, name string) tree {
	t := tree{}
	for range 8 {
		if err := t.add(filepath.Join(root, name), name, os.Lstat); err != nil {
			return t
		}
		link := t[name].link
		if link == "" {
			return t
		}
		if path.IsAbs(link) {
			name = strings.TrimPrefix(link, "/")
		} else {
			name = path.Join(path.Dir(name), link)
		}
	}
	return t
}

// finder says where a library lies and what files it takes. ahead hears of several that will be asked for next.
type finder interface {
	ahead(ctx context.Context, libs []string) error
	find(ctx context.Context, lib string) (tree, error)
}

// addLibraries adds what the programs in the tree load, then what that loads, and so on.
func (t tree) addLibraries(ctx context.Context, f finder) error {
	have := map[string]bool{}
	fresh := slices.Sorted(maps.Keys(t))
	for _, name := range fresh {
		have[path.Base(name)] = true
	}
	for len(fresh) > 0 {
		var wanted []string
		loader := map[string]string{} // library -> a file that loads it
		for _, name := range fresh {
			libs, err := loads(t[name].body)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			for _, lib := range libs {
				if !have[path.Base(lib)] {
					have[path.Base(lib)] = true
					wanted = append(wanted, lib)
					loader[lib] = name
				}
			}
		}
		fresh = nil
		if err := f.ahead(ctx, wanted); err != nil {
			return err
		}
		for _, lib := range wanted {
			files, err := f.find(ctx, lib)
			if err != nil {
				return fmt.Errorf("%s: %w", loader[lib], err)
			}
			for _, file := range slices.Sorted(maps.Keys(files)) {
				if _, there := t[file]; !there {
					t[file] = files[file]
					fresh = append(fresh, file)
				}
			}
		}
	}
	return nil
}

// loads lists the libraries that an ELF file names, and its interpreter by full path. Other files load none.
func loads(body []byte) ([]string, error) {
	if !bytes.HasPrefix(body, []byte(elf.ELFMAG)) {
		return nil, nil
	}
	f, err := elf.NewFile(bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	libs, err := f.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			name := make([]byte, p.Filesz)
			if _, err := p.ReadAt(name, 0); err != nil {
				return nil, err
			}
			libs = append(libs, strings.TrimRight(string(name), "\x00"))
		}
	}
	return libs, nil
}

// libraryDirs is where Debian's loader looks.
func libraryDirs() []string {
	triplet := map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}[runtime.GOARCH]
	return []string{"lib/" + triplet, "usr/lib/" + triplet, "lib64", "lib", "usr/lib64", "usr/lib"}
}

// findLibrary returns the path of a library, given by name or (an interpreter) by full path, below root.
func findLibrary(root, lib string) (string, bool) {
	if path.IsAbs(lib) {
		name := strings.TrimPrefix(lib, "/")
		_, err := os.Stat(filepath.Join(root, name))
		return name, err == nil
	}
	for _, dir := range libraryDirs() {
		if _, err := os.Lstat(filepath.Join(root, dir, lib)); err == nil {
			return path.Join(dir, lib), true
		}
	}
	return "", false
}

// tar writes the tree with every directory listed, so that the layer is the same over any other.
func (t tree) tar() ([]byte, error) {
	full := maps.Clone(t)
	for name := range t {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, there := full[dir]; !there {
				full[dir] = node{mode: os.ModeDir | 0o755}
			}
		}
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(full)) {
		n := full[name]
		st := &tar.Header{Name: name, Mode: int64(n.mode.Perm()), ModTime: moment(), Size: int64(len(n.body)), Typeflag: tar.TypeReg}
		for bit, mode := range map[os.FileMode]int64{os.ModeSetuid: 0o4000, os.ModeSetgid: 0o2000, os.ModeSticky: 0o1000} {
			if n.mode&bit != 0 {
				st.Mode |= mode
			}
		}
		switch {
		case n.mode.IsDir():
			st.Typeflag, st.Name = tar.TypeDir, name+"/"
		case n.mode&os.ModeSymlink != 0:
			st.Typeflag, st.Linkname = tar.TypeSymlink, n.link
		}
		if err := w.WriteHeader(st); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if _, err := w.Write(n.body); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	err := w.Close() // writes the end marker
	return buf.Bytes(), err
}
