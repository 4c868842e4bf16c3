package store

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// layer makes a layer tar of n files of size bytes, and of more entries.
func layer(t *testing.T, seed, n, size int, opt []tarball.LayerOption, more ...*tar.Header) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	source := rand.NewChaCha8([32]byte{byte(seed)})
	data := make([]byte, size)
	add := func(h *tar.Header, data []byte) {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		source.Read(data)
		add(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("d%d/f%d", seed, i), Mode: 0o644, Size: int64(size), ModTime: time.Unix(1e9, 0)}, data)
	}
	for _, h := range more {
		add(h, bytes.Repeat([]byte("x"), int(h.Size)))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil }, opt...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func image(t *testing.T, layers ...v1.Layer) v1.Image {
	t.Helper()
	im, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	config, err := im.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Config.Cmd = "linux", runtime.GOARCH, []string{"/bin/x"}
	if im, err = mutate.ConfigFile(im, config); err != nil {
		t.Fatal(err)
	}
	return im
}

func arch() string { return runtime.GOARCH }

func TestEveryFormatIsPulledListedAndRemoved(t *testing.T) {
	n, s := boot(t, ""), openShop(t)
	gz := layer(t, 1, 4, 1000, nil)
	zstd := layer(t, 2, 4, 1000, []tarball.LayerOption{tarball.WithCompression(compression.ZStd), tarball.WithMediaType(types.OCILayerZStd)})
	oci := mutate.MediaType(mutate.ConfigMediaType(image(t, gz, zstd), types.OCIConfigJSON), types.OCIManifestSchema1)
	names := []string{
		s.push("a/schema2:1", image(t, gz)),
		s.push("a/oci:1", oci),
		s.push("a/index:1", mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: oci, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}})),
	}
	for _, ref := range names {
		out, errs, code := n.images("pull", ref)
		if code != 0 || !strings.HasPrefix(out, "sha256:") || !strings.Contains(errs, "layer ") {
			t.Fatalf("pull %s: exit %d\n%s%s", ref, code, out, errs)
		}
	}
	list := n.must()
	for _, ref := range names {
		if !strings.Contains(list, ref) {
			t.Errorf("%s is not in the list:\n%s", ref, list)
		}
	}
	if disk := n.must("du"); !strings.Contains(disk, names[0]) || !strings.Contains(disk, "ITS OWN") {
		t.Error(disk)
	}
	n.nothingLeft(2)
	if _, errs, code := n.images("pull", s.host()+"/a/none:1"); code != 3 || !strings.Contains(errs, "404") {
		t.Errorf("an image that is nowhere: exit %d, %s", code, errs)
	}
	n.must("rm", names[0])
	if _, errs, code := n.images("rm", names[0]); code != 3 || !strings.Contains(errs, names[0]) {
		t.Errorf("removed twice: exit %d, %s", code, errs)
	}
	if gone := n.must("prune", "--dry-run"); !strings.Contains(gone, names[1]) {
		t.Error(gone)
	}
	n.must("prune")
	n.nothingLeft(0)
}

func TestAnExportIsTheSameEverywhereAndComesBack(t *testing.T) {
	n, s := boot(t, ""), openShop(t)
	odd := []*tar.Header{
		{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777},
		{Typeflag: tar.TypeReg, Name: "bin/su", Mode: 0o4755, Size: 10, Uid: 7, Gid: 8},
		{Typeflag: tar.TypeLink, Name: "bin/su2", Linkname: "bin/su"},
		{Typeflag: tar.TypeSymlink, Name: "lib", Linkname: "usr/lib"},
		{Typeflag: tar.TypeChar, Name: "dev/null", Devmajor: 1, Devminor: 3, Mode: 0o666},
		{Typeflag: tar.TypeReg, Name: "bin/cap", Mode: 0o755, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}},
	}
	above := []*tar.Header{{Typeflag: tar.TypeReg, Name: "bin/.wh.su2"}, {Typeflag: tar.TypeReg, Name: "tmp/.wh..wh..opq"}}
	ref := s.push("e:1", image(t, layer(t, 1, 3, 300<<10, nil, odd...), layer(t, 2, 1, 10, nil, above...)))
	n.must("pull", ref)
	file := filepath.Join(n.dir, "out.tar")
	_, errs, code := n.images("export", ref, "-f", file)
	if code != 0 || !strings.Contains(errs, "packed anew") {
		t.Fatalf("exit %d: %s", code, errs)
	}
	first, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	other := boot(t, "")
	in := other.must("import", file)
	if !strings.Contains(in, ref) {
		t.Fatalf("imported: %s", in)
	}
	id, _, _ := strings.Cut(in, " ")
	if !strings.Contains(errs, id) {
		t.Errorf("the export promised another id than %s: %s", id, errs)
	}
	second := filepath.Join(other.dir, "out.tar")
	other.must("export", ref, "-f", second)
	again, err := os.ReadFile(second)
	if err != nil {
		t.Fatal(err)
	}
	if sha256.Sum256(first) != sha256.Sum256(again) {
		t.Errorf("two nodes export different bytes:\n%s", cmp.Diff(contents(t, first), contents(t, again)))
	}
	if _, _, code := n.images("export", "none:1", "-f", filepath.Join(n.dir, "no.tar")); code != 3 {
		t.Errorf("an image that is not there: exit %d", code)
	}
	if _, err := os.Stat(filepath.Join(n.dir, "no.tar")); err == nil {
		t.Error("an export that failed left a file")
	}
}

func contents(t *testing.T, data []byte) (out []string) {
	r := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if err != nil {
			return out
		}
		out = append(out, fmt.Sprintf("%s %d", h.Name, h.Size))
	}
}

func TestADamagedLayerIsNamedAndBroughtAnew(t *testing.T) {
	n, s := boot(t, ""), openShop(t)
	ref := s.push("v:1", image(t, layer(t, 1, 3, 1000, nil), layer(t, 2, 3, 1000, nil)))
	n.must("pull", ref)
	n.must("verify", ref)
	found, err := filepath.Glob(filepath.Join(n.root, "images", "l", "*", "d2", "f1"))
	if err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
	f, err := os.OpenFile(found[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("?"), 500); err != nil {
		t.Fatal(err)
	}
	f.Close()
	out, errs, code := n.images("verify")
	if code != 1 || !strings.Contains(out, "d2/f1") || strings.Contains(out, "d1/") || !strings.Contains(errs, "1 fault") {
		t.Fatalf("exit %d\n%s%s", code, out, errs)
	}
	var fetched []string
	s.bend(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			fetched = append(fetched, r.URL.Path)
		}
		next.ServeHTTP(w, r)
	})
	n.must("pull", ref)
	n.must("verify", ref)
	if len(fetched) > 2 { // the configuration and one layer
		t.Errorf("more was fetched than the one layer: %v", fetched)
	}
	n.must("prune")
	n.nothingLeft(0)
}
