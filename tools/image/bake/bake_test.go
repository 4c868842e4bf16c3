package bake

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// content lists the image's files as containers see them.
func content(t *testing.T, img v1.Image) map[string]*tar.Header {
	t.Helper()
	r := mutate.Extract(img)
	defer r.Close()
	out := map[string]*tar.Header{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out[strings.TrimSuffix(h.Name, "/")] = h
	}
}

func put(t *testing.T, name, body string, mode os.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(body), mode); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestEqualInputsGiveEqualBytes(t *testing.T) {
	var first []byte
	for i := range 2 {
		dir := t.TempDir()
		put(t, dir+"/src/b", "b", 0o644)
		put(t, dir+"/src/a/c", "c", 0o600)
		img, err := Build(t.Context(), Recipe{Files: []File{{From: dir + "/src", To: "/srv"}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, write := range []func(string, []string, v1.Image) error{WriteDocker, WriteOCI} {
			if err := write(dir+"/out.tar", []string{"x:1"}, img); err != nil {
				t.Fatal(err)
			}
			data, err := os.ReadFile(dir + "/out.tar")
			if err != nil {
				t.Fatal(err)
			}
			first = append(first, data...)
		}
		if half := len(first) / 2; i == 1 && !bytes.Equal(first[:half], first[half:]) {
			t.Error("two builds differ")
		}
	}
}

func TestFilesAndBareSystemAreThere(t *testing.T) {
	dir := t.TempDir()
	put(t, dir+"/prog", "#!/bin/sh\n", 0o600)
	img, err := Build(t.Context(), Recipe{Files: []File{{From: dir + "/prog", To: "/usr/bin/prog", Mode: 0o755}}, Config: v1.Config{User: "7"}})
	if err != nil {
		t.Fatal(err)
	}
	files := content(t, img)
	for name, mode := range map[string]int64{"usr/bin/prog": 0o755, "tmp": 0o1777, "root": 0o700, "etc/passwd": 0o644, "usr": 0o755} {
		if h := files[name]; h == nil || h.Mode&0o7777 != mode || h.Uid != 0 {
			t.Errorf("%s: %+v, want mode %o", name, h, mode)
		}
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if c.Config.User != "7" || !slices.Equal(c.Config.Env, []string{searchPath}) || c.OS != "linux" {
		t.Errorf("configuration %+v", c)
	}
}

// Fake packages from this machine's own program: what it loads lies in other packages, one level down and two.
func TestLibrariesComeFromTheDependencies(t *testing.T) {
	program, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	needs, err := loads(program)
	if err != nil || len(needs) == 0 {
		t.Fatalf("/bin/sh loads %v, %v: a dynamic program is needed here", needs, err)
	}
	cache := t.TempDir()
	put(t, cache+"/tool/usr/bin/tool", string(program), 0o755)
	put(t, cache+"/tool/usr/share/doc/tool/README", "noise", 0o644)
	put(t, cache+"/libnothing/usr/lib/libnothing.so.1", "x", 0o644)
	for i, lib := range needs {
		file, ok := findLibrary("/", lib)
		if !ok {
			t.Fatalf("%s is not on this machine", lib)
		}
		real, err := os.ReadFile("/" + file)
		if err != nil {
			t.Fatal(err)
		}
		// A link, as packages have it.
		at := filepath.Join(cache, "libneeded", file)
		put(t, at+".real", string(real), 0o755)
		if err := os.Symlink(filepath.Base(file)+".real", at); err != nil {
			t.Fatal(i, err)
		}
	}
	put(t, cache+"/depends-tool", "libnothing\nlibneeded", 0o644)
	img, err := Build(t.Context(), Recipe{Debs: []string{"tool"}, Cache: cache})
	if err != nil {
		t.Fatal(err)
	}
	files := content(t, img)
	for _, lib := range needs {
		file, _ := findLibrary("/", lib)
		if files[file] == nil || files[file+".real"] == nil {
			t.Errorf("%s is missing, or what it leads to", file)
		}
	}
	if files["usr/share/doc/tool/README"] != nil || files["usr/lib/libnothing.so.1"] != nil {
		t.Error("more than the tool needs was taken")
	}
	if err := os.RemoveAll(cache + "/libneeded"); err != nil {
		t.Fatal(err)
	}
	put(t, cache+"/depends-tool", "libnothing", 0o644)
	if _, err := Build(t.Context(), Recipe{Debs: []string{"tool"}, Cache: cache}); err == nil || !strings.Contains(err.Error(), "usr/bin/tool: library") {
		t.Errorf("a missing library must be named, got %v", err)
	}
}

func TestDynamicProgramBringsThisMachinesLibraries(t *testing.T) {
	img, err := Build(t.Context(), Recipe{Files: []File{{From: "/bin/sh", To: "/bin/sh"}}})
	if err != nil {
		t.Fatal(err)
	}
	files := content(t, img)
	f, err := elf.Open("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	libs, err := f.ImportedLibraries()
	if err != nil {
		t.Fatal(err)
	}
	for _, lib := range libs {
		if file, _ := findLibrary("/", lib); files[file] == nil {
			t.Errorf("%s is missing", file)
		}
	}
}

func TestAnEqualFileIsNotWrittenAgain(t *testing.T) {
	out := filepath.Join(t.TempDir(), "sub", "x.tar")
	img, err := Build(t.Context(), Recipe{})
	if err != nil {
		t.Fatal(err)
	}
	var inodes []os.FileInfo
	for range 2 {
		if err := WriteDocker(out, []string{"example.org/x:1", "example.org/y:2"}, img); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(out)
		if err != nil {
			t.Fatal(err)
		}
		inodes = append(inodes, st)
	}
	if !os.SameFile(inodes[0], inodes[1]) {
		t.Error("an equal file was replaced: every node would import it again")
	}
	for _, n := range []string{"example.org/x:1", "example.org/y:2"} {
		tag, err := name.NewTag(n)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tarball.ImageFromPath(out, &tag); err != nil {
			t.Error(err)
		}
	}
	if err := WriteDocker(out, []string{"Bad Name"}, img); err == nil {
		t.Error("a bad name was accepted")
	}
	if left, _ := filepath.Glob(filepath.Dir(out) + "/.new-*"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := Build(t.Context(), Recipe{Files: []File{{From: "/nonexistent", To: "/x"}}}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if _, err := Build(t.Context(), Recipe{Base: "windows"}); err == nil {
		t.Error("an unknown base was accepted")
	}
}
