package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"runtime"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// file is one entry of a tar written by a test. Without kind it is a directory if the name ends in a slash.
type file struct {
	name string
	body string
	kind byte
	link string
	mode int64
	pax  map[string]string
}

func tarOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Typeflag: f.kind, Linkname: f.link, Mode: f.mode, Size: int64(len(f.body)), PAXRecords: f.pax}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if f.name[len(f.name)-1] == '/' {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gz(t testing.TB, data []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func zst(t testing.TB, data []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(data, nil)
}

// config is the configuration of an image with these (unpacked) layers.
func config(t testing.TB, layers ...[]byte) []byte {
	c := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}}
	c.Config = ocispec.ImageConfig{User: "app", Env: []string{"A=1"}, Entrypoint: []string{"/bin/app"}, Cmd: []string{"-v"},
		WorkingDir: "/srv", StopSignal: "SIGINT", Volumes: map[string]struct{}{"/data": {}}, Labels: map[string]string{"k": "v"}}
	c.RootFS.Type = "layers"
	for _, l := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromBytes(l))
	}
	return marshal(t, c)
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// dockerTar is what docker save wrote before version 25, one image.
func dockerTar(t testing.TB, tag string, layers ...[]byte) []byte {
	t.Helper()
	return dockerTarWith(t, config(t, layers...), tag, layers...)
}

func dockerTarWith(t testing.TB, conf []byte, tag string, layers ...[]byte) []byte {
	m := dockerManifest{Config: digest.FromBytes(conf).Encoded() + ".json", RepoTags: []string{tag}}
	files := []file{{name: m.Config, body: string(conf)}}
	for i, l := range layers {
		name := string(rune('a'+i)) + "/layer.tar"
		m.Layers = append(m.Layers, name)
		files = append(files, file{name: name, body: string(l)})
	}
	files = append(files, file{name: "manifest.json", body: string(marshal(t, []dockerManifest{m}))})
	return tarOf(t, files...)
}

// layout collects the blobs of an OCI layout.
type layout struct {
	t     testing.TB
	files []file
	index ocispec.Index
}

func newLayout(t testing.TB) *layout {
	return &layout{t: t, files: []file{{name: "oci-layout", body: `{"imageLayoutVersion":"1.0.0"}`}}}
}

func (l *layout) blob(data []byte, kind string) ocispec.Descriptor {
	d := digest.FromBytes(data)
	l.files = append(l.files, file{name: "blobs/sha256/" + d.Encoded(), body: string(data)})
	return ocispec.Descriptor{MediaType: kind, Digest: d, Size: int64(len(data))}
}

// image adds an image; plain are its layers unpacked, packed the same as they lie in the layout.
func (l *layout) image(plain, packed [][]byte) ocispec.Descriptor {
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.Config = l.blob(config(l.t, plain...), ocispec.MediaTypeImageConfig)
	for _, p := range packed {
		m.Layers = append(m.Layers, l.blob(p, ocispec.MediaTypeImageLayer))
	}
	return l.blob(marshal(l.t, m), ocispec.MediaTypeImageManifest)
}

func (l *layout) add(d ocispec.Descriptor, name string) {
	if name != "" {
		d.Annotations = map[string]string{ocispec.AnnotationRefName: name}
	}
	l.index.Manifests = append(l.index.Manifests, d)
}

func (l *layout) tar() []byte {
	return tarOf(l.t, append(l.files, file{name: "index.json", body: string(marshal(l.t, l.index))})...)
}
