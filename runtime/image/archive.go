package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"

	"worknode/fault"
)

// Bounds on the archive itself.
const (
	maxEntries  = 100_000
	maxDocument = 4 << 20 // bytes of a manifest, index or configuration
)

// bundle gives random access to the entries of a tar file.
type bundle struct {
	r       io.ReaderAt
	entries map[string]entry
}

type entry struct {
	at, size int64
	link     string // of a link: the entry it stands for
}

// indexTar reads the headers of an uncompressed tar.
func indexTar(r io.ReaderAt, size int64) (*bundle, error) {
	t := &bundle{r: r, entries: map[string]entry{}}
	at := io.NewSectionReader(r, 0, size)
	tr := tar.NewReader(at)
	last := ""
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			if last == "" {
				return nil, fault.New(fault.Invalid, "not a tar: %w", err)
			}
			return nil, fault.New(fault.Invalid, "damaged or cut short after entry %q: %w", last, err)
		}
		last = h.Name
		if len(t.entries) >= maxEntries {
			return nil, fault.New(fault.Invalid, "more than %d entries", maxEntries)
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			// The tar reader seeks and does not read ahead: after Next the file stands at the entry's first byte.
			begin, err := at.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			if sparse(h) {
				return nil, fault.New(fault.Invalid, "entry %q: a sparse file, which no image tool writes", h.Name)
			}
			if h.Size > size-begin {
				return nil, fault.New(fault.Invalid, "entry %q: cut short, %d of %d bytes are there", h.Name, size-begin, h.Size)
			}
			t.entries[name] = entry{at: begin, size: h.Size}
		case tar.TypeSymlink: // docker save writes a layer once and links to it
			t.entries[name] = entry{link: path.Join(path.Dir(name), h.Linkname)}
		case tar.TypeLink:
			t.entries[name] = entry{link: path.Clean(h.Linkname)}
		}
	}
	if len(t.entries) == 0 {
		return nil, fault.New(fault.Invalid, "an empty tar")
	}
	return t, nil
}

func sparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

func (t *bundle) find(name string) (entry, bool) {
	name = path.Clean(name)
	for range 8 {
		e, ok := t.entries[name]
		if !ok || e.link == "" {
			return e, ok
		}
		name = e.link
	}
	return entry{}, false
}

func (t *bundle) open(name string) (io.ReadCloser, error) {
	e, ok := t.find(name)
	if !ok {
		return nil, fault.New(fault.Invalid, "entry %q is missing", name)
	}
	return io.NopCloser(io.NewSectionReader(t.r, e.at, e.size)), nil
}

// document reads a small entry.
func (t *bundle) document(name string) ([]byte, error) {
	e, ok := t.find(name)
	if !ok {
		return nil, fault.New(fault.Invalid, "entry %q is missing", name)
	}
	if e.size > maxDocument {
		return nil, fault.New(fault.Invalid, "entry %q: %d bytes, at most %d are read", name, e.size, maxDocument)
	}
	data := make([]byte, e.size)
	if _, err := t.r.ReadAt(data, e.at); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("entry %q: %w", name, err)
	}
	return data, nil
}

// blob reads a small entry of an OCI layout and checks its digest.
func (t *bundle) blob(d digest.Digest) ([]byte, error) {
	name, err := blobName(d)
	if err != nil {
		return nil, err
	}
	data, err := t.document(name)
	if err != nil {
		return nil, err
	}
	return data, verify(name, data, d)
}

func verify(name string, data []byte, want digest.Digest) error {
	if got := digest.FromBytes(data); got != want {
		err := fault.New(fault.Invalid, "entry %q: content has digest %s, its name says %s", name, got, want)
		return fault.Hint(err, "the file is damaged: build or copy it again")
	}
	return nil
}

// blobName is where an OCI layout keeps a blob. Only sha256 is accepted, as the field uses nothing else.
// Source: OCI image-spec image-layout.md.
func blobName(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return "", fault.New(fault.Invalid, "digest %q: not a sha256 digest", d)
	}
	return "blobs/sha256/" + d.Encoded(), nil
}

// decode reads one JSON document; unknown fields are other people's.
func decode(name string, data []byte, into any) error {
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(into); err != nil {
		return fault.New(fault.Invalid, "entry %q: not the JSON expected: %w", name, err)
	}
	return nil
}
