package bake

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// WriteDocker writes a docker-archive with the image under its names. A file that has this very content stays untouched,
// so that nobody imports it again. Crash: the old file, or the new one.
func WriteDocker(file string, names []string, img v1.Image) error {
	return replace(file, func(w io.Writer) error {
		tags := map[name.Reference]v1.Image{}
		for _, n := range names {
			ref, err := name.NewTag(n)
			if err != nil {
				return err
			}
			tags[ref] = img
		}
		if len(tags) == 0 {
			return fmt.Errorf("an image needs a name")
		}
		pr, pw := io.Pipe()
		go func() { pw.CloseWithError(tarball.MultiRefWrite(tags, pw)) }()
		defer pr.Close()
		return sortTags(w, pr)
	})
}

// sortTags copies a docker-archive with the names of each image in order. The library writes them as a map yields them, and
// the same image has to be the same bytes.
func sortTags(w io.Writer, r io.Reader) error {
	in, out := tar.NewReader(r), tar.NewWriter(w)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		body := io.Reader(in)
		if h.Name == "manifest.json" {
			var m tarball.Manifest
			if err := json.NewDecoder(in).Decode(&m); err != nil {
				return err
			}
			for i := range m {
				slices.Sort(m[i].RepoTags)
			}
			text, err := json.Marshal(m)
			if err != nil {
				return err
			}
			h.Size, body = int64(len(text)), bytes.NewReader(text)
		}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(out, body); err != nil {
			return err
		}
	}
	if err := out.Close(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, r) // the padding behind the end, so that the writer ends too
	return err
}

// WriteOCI writes the same as an OCI layout in a tar.
func WriteOCI(file string, names []string, img v1.Image) error {
	dir, err := os.MkdirTemp("", "oci-layout-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	at, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	for _, n := range names {
		if _, err := name.NewTag(n); err != nil {
			return err
		}
		note := map[string]string{"io.containerd.image.name": n, "org.opencontainers.image.ref.name": n}
		if err := at.AppendImage(img, layout.WithAnnotations(note)); err != nil {
			return err
		}
	}
	t := tree{}
	if err := t.addAll(dir, ""); err != nil {
		return err
	}
	data, err := t.tar()
	if err != nil {
		return err
	}
	return replace(file, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

func replace(file string, write func(io.Writer) error) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".new-") // no .tar in the name: nobody reads it half
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	err = write(f)
	if err1 := f.Close(); err == nil {
		err = err1
	}
	if err == nil {
		err = os.Chmod(f.Name(), 0o644)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if same(f.Name(), file) {
		return nil
	}
	return os.Rename(f.Name(), file)
}

func same(a, b string) bool {
	x, err := os.ReadFile(a)
	if err != nil {
		return false
	}
	y, err := os.ReadFile(b)
	return err == nil && bytes.Equal(x, y)
}
