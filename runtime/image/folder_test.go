package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// hostile are entries that try to leave the layer's folder, in the order in which a layer would bring them.
func hostile() [][]*tar.Header {
	link := func(name, to string) *tar.Header {
		return &tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	file := func(name string) *tar.Header { return &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644} }
	return [][]*tar.Header{
		{file("../out")}, {file("/../../out")}, {file("a/../../out")},
		{link("a", ".."), file("a/out")}, {link("a", "/"), file("a/out")}, {link("a", "../.."), link("b", "a/.."), file("b/out")},
		{link("a", "b"), link("b", "a"), file("a/out")}, {link("a", "a"), file("a/out")},
		{link("a", "/proc/self/root"), file("a/out")}, {link("a", "../../../../../../../../tmp"), file("a/out")},
		{link("a", ".."), {Typeflag: tar.TypeLink, Name: "x", Linkname: "a/secret"}},
		{{Typeflag: tar.TypeLink, Name: "x", Linkname: "../secret"}}, {{Typeflag: tar.TypeLink, Name: "x", Linkname: "x"}},
		{{Typeflag: tar.TypeDir, Name: "d/"}, link("d", ".."), file("d/out")},
		{link("d", ".."), {Typeflag: tar.TypeDir, Name: "d/", Mode: 0o700}, file("d/out")},
		{file(".wh.")}, {file(".wh...")}, {file(".wh..")}, {link("a", ".."), file("a/.wh.secret")}, {link("a", ".."), file("a/.wh..wh..opq")},
		{{Typeflag: tar.TypeChar, Name: "c", Devmajor: 1 << 40}}, {{Typeflag: tar.TypeReg, Name: "u", Uid: -1}},
		{{Typeflag: tar.TypeFifo, Name: "p"}, file("p")}, {file("f"), file("f/g")}, {{Typeflag: '7', Name: "odd"}},
	}
}

func packed(t testing.TB, list []*tar.Header) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range list {
		if err := w.WriteHeader(h); err != nil {
			t.Skip(err) // a header that cannot be written tries nobody
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// den is a folder for a layer with neighbours that must not change.
func den(t testing.TB) (layer string, unchanged func()) {
	t.Helper()
	top := t.TempDir()
	layer = filepath.Join(top, "mid", "layer")
	if err := os.MkdirAll(layer, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{top, filepath.Dir(layer)} {
		if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("s"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	look := func() (out string) {
		err := filepath.WalkDir(top, func(at string, e fs.DirEntry, err error) error {
			if at == layer {
				return fs.SkipDir
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			out += at + " " + info.Mode().String()
			if _, hidden, err := extended(at); err != nil || hidden {
				out += " opaque"
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	before := look()
	return layer, func() {
		t.Helper()
		os.Remove(sumsOf(layer))
		if after := look(); after != before {
			t.Errorf("outside the layer:\nbefore %s\nafter  %s", before, after)
		}
	}
}

func openFiles(t testing.TB) int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestNoEntryLeavesItsLayer(t *testing.T) {
	for i, list := range hostile() {
		layer, unchanged := den(t)
		fds := openFiles(t)
		_, err := unpack(t.Context(), layer, bytes.NewReader(packed(t, list)))
		unchanged()
		if now := openFiles(t); now != fds {
			t.Errorf("case %d (%v): %d descriptors open, before %d", i, err, now, fds)
		}
	}
}

// FuzzTar unpacks what strangers wrote: no panic, nothing outside the folder, no descriptor left, and what is packed
// again unpacks.
func FuzzTar(f *testing.F) {
	for _, list := range hostile() {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		good := true
		for _, h := range list {
			good = good && w.WriteHeader(h) == nil
		}
		if good && w.Close() == nil {
			f.Add(b.Bytes())
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		layer, unchanged := den(t)
		_, err := unpack(t.Context(), layer, bytes.NewReader(data))
		unchanged()
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := pack(t.Context(), layer, &b); err != nil {
			t.Fatalf("pack: %v", err)
		}
		again, unchanged := den(t)
		if _, err := unpack(t.Context(), again, &b); err != nil {
			t.Fatalf("what was packed does not unpack: %v", err)
		}
		unchanged()
	})
}

// FuzzSums reads lists of checksums as a disk may leave them.
func FuzzSums(f *testing.F) {
	f.Add(`00000000 0 "a/b"`)
	f.Add(`- 0 "a"`)
	f.Add(`zz -1 "\xff`)
	f.Fuzz(func(t *testing.T, line string) {
		if name, s, gone, err := parseSum(line); err == nil && !gone {
			w := fmt.Sprintf("%08x %d %q", s.crc, s.size, name)
			if n2, s2, _, err := parseSum(w); err != nil || n2 != name || s2 != s {
				t.Errorf("%q was read, %q comes back: %v", line, w, err)
			}
		}
	})
}

// FuzzTable opens a store with a table of anybody's: it opens, and nothing outside it goes.
func FuzzTable(f *testing.F) {
	f.Add([]byte(`{"Version":1,"Images":{"sha256:a":null},"Layers":{"../x":{}}}`))
	f.Add([]byte(`{"Version":1,"Orphans":{"..":"x"},"Files":{"/":{}}}`))
	f.Add([]byte(`{"Version":2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		root := filepath.Join(t.TempDir(), "store")
		if err := os.MkdirAll(root, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "images.json"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(root)
		if err != nil {
			t.Fatal(err)
		}
		s.List()
		s.Disk()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
