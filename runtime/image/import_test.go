package image

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"worknode/fault"
)

func open(t testing.TB) *Store {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("layers have owners and device nodes: run this test as root")
	}
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func load(t testing.TB, s *Store, data []byte) Image {
	t.Helper()
	list, err := s.Import(t.Context(), bytes.NewReader(data), "test.tar")
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 {
		t.Fatalf("%d images, want one", len(list))
	}
	return list[0]
}

// onDisk lists the names in a directory of the store.
func onDisk(t testing.TB, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range list {
		out = append(out, e.Name())
	}
	return out
}

// mounted stacks the image as the kernel does and returns the mount point.
func mounted(t testing.TB, s *Store, im Image) string {
	t.Helper()
	dir := t.TempDir()
	lower := make([]string, len(im.Layers))
	for i, l := range im.Layers {
		lower[i] = filepath.Join(s.Base(), l)
	}
	lower = append(lower, t.TempDir()) // a single read-only layer is refused by overlayfs
	if err := unix.Mount("overlay", dir, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lower, ":")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func tree(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.Walk(dir, func(path string, st os.FileInfo, err error) error {
		if err == nil && path != dir {
			out = append(out, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestDockerArchiveIsImportedWhole(t *testing.T) {
	s := open(t)
	low := tarOf(t, file{name: "bin/"}, file{name: "bin/app", body: "one"})
	up := tarOf(t, file{name: "bin/"}, file{name: "bin/app", body: "two"}, file{name: "srv/", mode: 0o1777})
	im := load(t, s, dockerTar(t, "web:1", low, up))
	if im.ID != digest.FromBytes(config(t, low, up)).String() {
		t.Errorf("id %s is not the digest of the configuration", im.ID)
	}
	if diff := cmp.Diff([]string{"docker.io/library/web:1"}, im.Tags); diff != "" {
		t.Error(diff)
	}
	if im.Config.User != "app" || im.Config.WorkingDir != "/srv" || im.Config.StopSignal != "SIGINT" || im.Config.Labels["k"] != "v" {
		t.Errorf("configuration is %+v", im.Config)
	}
	for _, l := range im.Layers {
		if len(l) > 12 {
			t.Errorf("layer name %s is too long to stack many", l)
		}
	}
	root := mounted(t, s, im)
	if got, err := os.ReadFile(root + "/bin/app"); string(got) != "two" || err != nil {
		t.Errorf("upper layer does not cover the lower: %q, %v", got, err)
	}
	if st, err := os.Stat(root + "/srv"); err != nil || st.Mode() != os.ModeDir|os.ModeSticky|0o777 {
		t.Errorf("/srv: %v, %v", st, err)
	}
	for _, ref := range []string{"web:1", "docker.io/library/web:1", im.ID, im.ID[7:], im.ID[7:20]} {
		if got, ok := s.Get(ref); !ok || got.ID != im.ID {
			t.Errorf("not found by %q", ref)
		}
	}
	for _, ref := range []string{"web", "web:2", "", "zzz", "sha256:", "Web:1", im.ID + "0"} {
		if _, ok := s.Get(ref); ok {
			t.Errorf("found by %q", ref)
		}
	}
}

func TestOCILayoutOfEveryCompression(t *testing.T) {
	s := open(t)
	a, b, c := tarOf(t, file{name: "a"}), tarOf(t, file{name: "b"}), tarOf(t, file{name: "c"})
	l := newLayout(t)
	d := l.image([][]byte{a, b, c}, [][]byte{a, gz(t, b), zst(t, c)})
	l.add(d, "registry.example/team/app:v2")
	for _, packed := range [][]byte{l.tar(), gz(t, l.tar()), zst(t, l.tar())} {
		im := load(t, s, packed)
		if diff := cmp.Diff([]string{"a", "b", "c"}, tree(t, mounted(t, s, im))); diff != "" {
			t.Error(diff)
		}
		want := "registry.example/team/app@" + d.Digest.String()
		if !slices.Equal(im.Digests, []string{want}) {
			t.Errorf("digests %v, want %s", im.Digests, want)
		}
		if got, ok := s.Get(want); !ok || got.ID != im.ID {
			t.Errorf("not found by %s", want)
		}
	}
	if n := len(onDisk(t, s.Base())); n != 3 {
		t.Errorf("%d layers on disk after three imports of one image, want 3", n)
	}
}

func TestThisNodesPlatformIsTakenFromAnIndex(t *testing.T) {
	s := open(t)
	l := newLayout(t)
	mine, other := tarOf(t, file{name: "mine"}), tarOf(t, file{name: "other"})
	good := l.image([][]byte{mine}, [][]byte{mine})
	good.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
	bad := l.image([][]byte{other}, [][]byte{other})
	bad.Platform = &ocispec.Platform{OS: "linux", Architecture: "s390x"}
	sbom := good
	sbom.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	l.add(l.blob(marshal(t, ocispec.Index{Manifests: []ocispec.Descriptor{bad, sbom, good}}), ocispec.MediaTypeImageIndex), "app:1")
	im := load(t, s, l.tar())
	if diff := cmp.Diff([]string{"mine"}, tree(t, mounted(t, s, im))); diff != "" {
		t.Error(diff)
	}
}

// Another program's writer, so that we do not only read what we write.
func TestTarOfGoContainerregistry(t *testing.T) {
	s := open(t)
	plain := tarOf(t, file{name: "hello", body: "world"})
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(plain)), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := tarball.Write(name.MustParseReference("example.org/x:1"), img, &buf); err != nil {
		t.Fatal(err)
	}
	im := load(t, s, buf.Bytes())
	if want, _ := img.ConfigName(); im.ID != want.String() {
		t.Errorf("id %s, want %s", im.ID, want)
	}
	if diff := cmp.Diff([]string{"hello"}, tree(t, mounted(t, s, im))); diff != "" {
		t.Error(diff)
	}
}

func TestMarksOfDeletionHideWhatLiesBelow(t *testing.T) {
	low := []file{{name: "d/"}, {name: "d/old", body: "x"}, {name: "f", body: "x"}, {name: "e/"}, {name: "e/old", body: "x"}, {name: "g/"}, {name: "g/old"}}
	tests := []struct {
		name string
		up   []file
		want []string
	}{
		{"whiteout of a file and a directory", []file{{name: ".wh.f"}, {name: ".wh.d"}}, []string{"e", "e/old", "g", "g/old"}},
		{"opaque before and after the new content",
			[]file{{name: "d/"}, {name: "d/.wh..wh..opq"}, {name: "d/new"}, {name: "e/"}, {name: "e/new"}, {name: "e/.wh..wh..opq"}},
			[]string{"d", "d/new", "e", "e/new", "f", "g", "g/old"}},
		{"a directory replaced after its mark", []file{{name: ".wh.d"}, {name: "d/"}, {name: "d/new"}}, []string{"d", "d/new", "e", "e/old", "f", "g", "g/old"}},
		{"a directory replaced before its mark", []file{{name: "d/"}, {name: "d/new"}, {name: ".wh.d"}}, []string{"d", "d/new", "e", "e/old", "f", "g", "g/old"}},
		{"a file replaced under its own mark", []file{{name: "f", body: "y"}, {name: ".wh.f"}}, []string{"d", "d/old", "e", "e/old", "f", "g", "g/old"}},
		{"the same mark twice", []file{{name: ".wh.f"}, {name: ".wh.f"}, {name: ".wh..wh.plnk"}}, []string{"d", "d/old", "e", "e/old", "g", "g/old"}},
		{"a mark in a directory the layer does not list", []file{{name: "g/.wh.old"}}, []string{"d", "d/old", "e", "e/old", "f", "g"}},
		{"a directory becomes a link", []file{{name: "d", kind: tar.TypeSymlink, link: "e"}}, []string{"d", "e", "e/old", "f", "g", "g/old"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			im := load(t, s, dockerTar(t, "x:1", tarOf(t, low...), tarOf(t, tt.up...)))
			if diff := cmp.Diff(tt.want, tree(t, mounted(t, s, im))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestUnlistedDirectoriesKeepTheModeFromBelow(t *testing.T) {
	s := open(t)
	low := tarOf(t, file{name: "tmp/", mode: 0o1777})
	up := tarOf(t, file{name: "tmp/file"})
	im := load(t, s, dockerTar(t, "a:1", low, up))
	if st, err := os.Stat(mounted(t, s, im) + "/tmp"); err != nil || st.Mode() != os.ModeDir|os.ModeSticky|0o777 {
		t.Errorf("/tmp is %v, %v: nobody but root could write there", st.Mode(), err)
	}
	// The same layer over another base must not share that directory.
	other := load(t, s, dockerTar(t, "b:1", tarOf(t, file{name: "tmp/", mode: 0o700}), up))
	if st, err := os.Stat(mounted(t, s, other) + "/tmp"); err != nil || st.Mode() != os.ModeDir|0o700 {
		t.Errorf("/tmp is %v, %v, want the mode of its own base", st.Mode(), err)
	}
}

func TestHardLinksOwnersAndXattrsSurvive(t *testing.T) {
	s := open(t)
	im := load(t, s, dockerTar(t, "a:1", tarOf(t,
		file{name: "one", body: "x", mode: 0o4755, pax: map[string]string{
			"SCHILY.xattr.user.color": "red", "SCHILY.xattr.trusted.overlay.redirect": "/etc"}},
		file{name: "two", kind: tar.TypeLink, link: "one", mode: 0o4755},
		file{name: "three", kind: tar.TypeLink, link: "/one", mode: 0o4755})))
	dir := filepath.Join(s.Base(), im.Layers[0])
	var one, two, three unix.Stat_t
	for path, st := range map[string]*unix.Stat_t{"one": &one, "two": &two, "three": &three} {
		if err := unix.Lstat(filepath.Join(dir, path), st); err != nil {
			t.Fatal(err)
		}
	}
	if one.Ino != two.Ino || one.Ino != three.Ino || one.Mode&0o7777 != 0o4755 {
		t.Errorf("inodes %d %d %d, mode %o", one.Ino, two.Ino, three.Ino, one.Mode)
	}
	buf := make([]byte, 64)
	if n, err := unix.Lgetxattr(filepath.Join(dir, "one"), "user.color", buf); err != nil || string(buf[:n]) != "red" {
		t.Errorf("user.color: %q, %v", buf[:max(n, 0)], err)
	}
	if _, err := unix.Lgetxattr(filepath.Join(dir, "one"), "trusted.overlay.redirect", buf); err == nil {
		t.Error("an image set overlayfs' own attribute")
	}
}

func TestOneLayerOfTwoTarsIsOnDiskOnce(t *testing.T) {
	s := open(t)
	base := tarOf(t, file{name: "bin/"}, file{name: "bin/sh", body: strings.Repeat("x", 5000)})
	a := load(t, s, dockerTar(t, "a:1", base, tarOf(t, file{name: "a"})))
	b := load(t, s, dockerTar(t, "b:1", tarOf(t, file{name: "b"}), base)) // over another base, too
	if n := len(onDisk(t, s.Base())); n != 3 {
		t.Errorf("%d layers on disk, want 3", n)
	}
	if a.Layers[1] != b.Layers[0] {
		t.Errorf("%v and %v share nothing", a.Layers, b.Layers)
	}
	if bytes, inodes := s.Usage(); bytes != 4096+8192 || inodes != 4 {
		t.Errorf("usage %d bytes, %d inodes", bytes, inodes)
	}
}

func TestALayerThatComesTwiceInOneImage(t *testing.T) {
	s := open(t)
	nothing := tarOf(t, file{name: "x"})
	im := load(t, s, dockerTar(t, "a:1", nothing, tarOf(t, file{name: ".wh.x"}), nothing))
	if diff := cmp.Diff([]string{"x"}, tree(t, mounted(t, s, im))); diff != "" {
		t.Error(diff)
	}
	none := load(t, s, dockerTar(t, "b:1"))
	if len(none.Layers) != 1 || none.Size == 0 {
		t.Errorf("an image without layers: %+v", none)
	}
}

func TestConcurrentImportsShareTheWork(t *testing.T) {
	s := open(t)
	base := tarOf(t, file{name: "big", body: strings.Repeat("0123456789abcdef", 1<<16)})
	var wg sync.WaitGroup
	for i := range 8 {
		data := dockerTar(t, fmt.Sprintf("a:%d", i), base, tarOf(t, file{name: fmt.Sprint(i)}))
		wg.Go(func() {
			if _, err := s.Import(context.Background(), bytes.NewReader(data), "x.tar"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(onDisk(t, s.Base())); n != 9 || len(s.List()) != 8 {
		t.Errorf("%d layers, %d images", n, len(s.List()))
	}
	if left := onDisk(t, s.staging()); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestBadTarsAreRefusedByNameAndLeaveNothing(t *testing.T) {
	good := tarOf(t, file{name: "ok", body: strings.Repeat("data", 1000)})
	whole := dockerTar(t, "a:1", good)
	layerOf := func(files ...file) []byte { return dockerTar(t, "a:1", tarOf(t, files...)) }
	flip := func(data []byte, what string) []byte {
		i := bytes.Index(data, []byte(what))
		data = bytes.Clone(data)
		data[i] ^= 1
		return data
	}
	oci := func(plain, packed []byte) []byte {
		l := newLayout(t)
		l.add(l.image([][]byte{plain}, [][]byte{packed}), "a:1")
		return l.tar()
	}
	tests := []struct {
		name string
		data []byte
		want []string // what the error must name
	}{
		{"empty file", nil, []string{"empty tar"}},
		{"not a tar", []byte(strings.Repeat("hello ", 500)), []string{"not a tar"}},
		{"a tar without an image", tarOf(t, file{name: "readme"}), []string{"manifest.json", "index.json"}},
		{"cut within a layer", whole[:len(whole)/2], []string{"a/layer.tar", "cut short"}},
		{"cut gzip", gz(t, whole)[:200], []string{"EOF"}},
		{"path escape", layerOf(file{name: "../../etc/passwd", body: "x"}), []string{"a/layer.tar", "../../etc/passwd", "leaves the image"}},
		{"inner path escape", layerOf(file{name: "a/../../x", body: "x"}), []string{"leaves the image"}},
		{"hard link escape", layerOf(file{name: "x", kind: tar.TypeLink, link: "../../../etc/passwd"}), []string{`"x"`, "leaves the image"}},
		{"hard link to nothing", layerOf(file{name: "x", kind: tar.TypeLink, link: "gone"}), []string{`"x"`}},
		{"whiteout escape", layerOf(file{name: "d/"}, file{name: "d/.wh..."}), []string{"d/.wh..."}},
		{"wrong layer content", flip(whole, "datadata"), []string{"a/layer.tar", "digest", "damaged"}},
		{"wrong config content", flip(whole, "/bin/app"), []string{".json", "digest", "damaged"}},
		{"wrong blob content", flip(oci(good, good), "datadata"), []string{"blobs/sha256/", "digest"}},
		{"layer packed twice over", oci(good, gz(t, gz(t, good))), []string{"blobs/sha256/"}},
		{"diff id of another layer", oci(tarOf(t, file{name: "other"}), good), []string{"unpacked content", "digest"}},
		{"layer missing", tarOf(t, file{name: "manifest.json", body: `[{"Config":"c.json","Layers":["l.tar"]}]`},
			file{name: "c.json", body: string(config(t, good))}), []string{`"l.tar"`, "missing"}},
		{"config missing", tarOf(t, file{name: "manifest.json", body: `[{"Config":"c.json"}]`}), []string{`"c.json"`, "missing"}},
		{"links in a ring", tarOf(t, file{name: "manifest.json", kind: tar.TypeSymlink, link: "x"}, file{name: "x", kind: tar.TypeSymlink, link: "manifest.json"}), []string{"manifest.json"}},
		{"not JSON", tarOf(t, file{name: "manifest.json", body: `[{"Config":7}]`}), []string{"manifest.json", "JSON"}},
		{"layers miscounted", dockerTarWith(t, config(t, good, good), "a:1", good), []string{"names 2 layers, the manifest 1"}},
		{"bad tag", dockerTar(t, "UPPER:1", good), []string{"UPPER:1"}},
		{"huge manifest", tarOf(t, file{name: "manifest.json", body: strings.Repeat(" ", maxDocument+1)}), []string{"manifest.json", "at most"}},
		{"other machine", dockerTarWith(t, bytes.Replace(config(t, good), []byte("amd64"), []byte("s390x"), 1), "a:1", good), []string{"s390x"}},
		{"bzip2", []byte("BZh91AY&SY"), []string{"bzip2"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			_, err := s.Import(t.Context(), bytes.NewReader(tt.data), "bad.tar")
			if err == nil {
				t.Fatal("accepted")
			}
			for _, w := range append(tt.want, "bad.tar") {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error does not name %q: %v", w, err)
				}
			}
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("kind %v, want invalid: %v", fault.Of(err), err)
			}
			if left := append(onDisk(t, s.staging()), onDisk(t, s.Base())...); len(left) != 0 || len(s.List()) != 0 {
				t.Errorf("left behind: %v, images %v", left, s.List())
			}
		})
	}
}

// A sparse entry claims any size in a few bytes; the layer must be refused before the disk is full.
func TestAFileLargerThanTheDiskIsRefused(t *testing.T) {
	s := open(t)
	var buf bytes.Buffer
	buf.Write(tarOf(t, file{name: "small", body: "x"})[:1024]) // without the end marker
	h := make([]byte, 512)
	copy(h, "huge")
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], "\x80\x00\x00\x00\x00\x40\x00\x00\x00\x00\x00\x00") // 2^54 bytes, base-256
	copy(h[136:], "00000000000\x00        0")
	copy(h[257:], "ustar  \x00")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	buf.Write(h)
	layer := append(buf.Bytes(), make([]byte, 4096)...)
	_, err := s.Import(t.Context(), bytes.NewReader(dockerTar(t, "a:1", layer)), "bad.tar")
	if !fault.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), `"huge"`) {
		t.Fatalf("got %v", err)
	}
	if left := append(onDisk(t, s.staging()), onDisk(t, s.Base())...); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestALateFaultTakesTheWholeTarBack(t *testing.T) {
	s := open(t)
	keep := load(t, s, dockerTar(t, "keep:1", tarOf(t, file{name: "k"})))
	l := newLayout(t)
	a, b := tarOf(t, file{name: "a"}), tarOf(t, file{name: "../b"})
	l.add(l.image([][]byte{a}, [][]byte{a}), "a:1")
	l.add(l.image([][]byte{b}, [][]byte{b}), "b:1")
	if _, err := s.Import(t.Context(), bytes.NewReader(l.tar()), "x.tar"); err == nil {
		t.Fatal("accepted")
	}
	if got := onDisk(t, s.Base()); !slices.Equal(got, keep.Layers) || len(s.List()) != 1 {
		t.Errorf("on disk %v, want %v only", got, keep.Layers)
	}
}
