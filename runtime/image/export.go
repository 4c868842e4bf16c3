package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"worknode/fault"
)

// Export writes the images that refs name as one OCI layout in a tar, uncompressed.
//
// No layer is kept as it came, so each is packed anew from its folder: always the same bytes for the same layer, but not
// those of the registry. Layers, configuration and so the image have digests of their own; history is not kept. The ids
// are returned, as they will be where the tar is imported.
// Errors: NotFound names the image; Invalid if a name is given to two images; those of w.
func (s *Store) Export(ctx context.Context, w io.Writer, refs []string) (ids []string, err error) {
	var list []Image
	for _, ref := range refs {
		im, ok := s.Get(ref)
		if !ok {
			return nil, fault.New(fault.NotFound, "export image %s: it is not in the store", ref)
		}
		s.Use(im.ID) // nobody sweeps it meanwhile
		defer s.Release(im.ID)
		list = append(list, im)
	}
	e := &exporter{ctx: ctx, store: s, w: tar.NewWriter(w), known: map[string]ocispec.Descriptor{}, written: map[digest.Digest]bool{}}
	if ids, err = e.images(list, refs); err != nil {
		return nil, fmt.Errorf("export: %w", err)
	}
	return ids, e.w.Close()
}

type exporter struct {
	ctx     context.Context
	store   *Store
	w       *tar.Writer
	known   map[string]ocispec.Descriptor // layers by their name
	written map[digest.Digest]bool
}

func (e *exporter) images(list []Image, refs []string) (ids []string, err error) {
	layout, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return nil, err
	}
	if err := e.file(ocispec.ImageLayoutFile, layout); err != nil {
		return nil, err
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for i, im := range list {
		manifest, id, err := e.image(im)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
		names := im.Tags
		if full, err := normal(refs[i]); err == nil && slices.Contains(im.Tags, full) {
			names = []string{full} // asked for by name: that name alone
		}
		for _, name := range names {
			named := manifest
			named.Annotations = map[string]string{containerdName: name, ocispec.AnnotationRefName: name[strings.LastIndexByte(name, ':')+1:]}
			index.Manifests = append(index.Manifests, named)
		}
		if len(names) == 0 {
			index.Manifests = append(index.Manifests, manifest)
		}
	}
	data, err := json.Marshal(index)
	if err != nil {
		return nil, err
	}
	return ids, e.file(ocispec.ImageIndexFile, data)
}

func (e *exporter) image(im Image) (ocispec.Descriptor, string, error) {
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, Config: im.Config, RootFS: ocispec.RootFS{Type: "layers"}}
	if !im.Created.IsZero() {
		config.Created = &im.Created
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, name := range slices.Backward(im.Layers) {
		l, err := e.layer(name)
		if err != nil {
			return l, "", fmt.Errorf("image %s: %w", im, err)
		}
		m.Layers = append(m.Layers, l)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.Digest)
	}
	c, err := e.document(ocispec.MediaTypeImageConfig, config)
	if err != nil {
		return c, "", err
	}
	m.Config = c
	d, err := e.document(ocispec.MediaTypeImageManifest, m)
	return d, c.Digest.String(), err
}

func (e *exporter) document(kind string, v any) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: kind, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if e.written[d.Digest] {
		return d, nil
	}
	e.written[d.Digest] = true
	return d, e.file("blobs/sha256/"+d.Digest.Encoded(), data)
}

func (e *exporter) file(name string, data []byte) error {
	if err := e.head(name, int64(len(data))); err != nil {
		return err
	}
	_, err := e.w.Write(data)
	return err
}

func (e *exporter) head(name string, size int64) error {
	return e.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0)})
}

// layer packs one layer twice: its name in the archive is the digest of what comes after the name.
func (e *exporter) layer(name string) (ocispec.Descriptor, error) {
	if d, ok := e.known[name]; ok {
		return d, nil
	}
	dir, sum, size := filepath.Join(e.store.Base(), name), sha256.New(), &counter{}
	if err := pack(e.ctx, dir, io.MultiWriter(sum, size)); err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.NewDigest(digest.SHA256, sum), Size: size.n}
	e.known[name] = d
	if e.written[d.Digest] {
		return d, nil
	}
	e.written[d.Digest] = true
	if err := e.head("blobs/sha256/"+d.Digest.Encoded(), d.Size); err != nil {
		return d, err
	}
	return d, pack(e.ctx, dir, e.w)
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) { c.n += int64(len(p)); return len(p), nil }

// pack writes a layer's folder as a layer tar: names in order, overlayfs' marks as the tar's, no names of users.
// Source: OCI image-spec layer.md.
func pack(ctx context.Context, dir string, w io.Writer) error {
	out := &packer{w: tar.NewWriter(w), first: map[uint64]string{}, buf: make([]byte, piece)}
	err := filepath.WalkDir(dir, func(at string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, at)
		if err != nil {
			return err
		}
		return out.entry(at, name)
	})
	if err != nil {
		return err
	}
	return out.w.Close()
}

type packer struct {
	w     *tar.Writer
	first map[uint64]string // inode -> the first of its names
	buf   []byte
}

func (p *packer) entry(at, name string) error {
	var st unix.Stat_t
	if err := unix.Lstat(at, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: at, Err: err}
	}
	if hides(&st) {
		return p.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: filepath.Join(filepath.Dir(name), ".wh."+filepath.Base(name)), Format: tar.FormatPAX})
	}
	h := &tar.Header{Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX}
	records, hidden, err := extended(at)
	if err != nil {
		return err
	}
	h.PAXRecords = records
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = os.Readlink(at); err != nil {
			return err
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	default:
		return nil // a socket: no layer brings one
	}
	if h.Typeflag != tar.TypeDir && st.Nlink > 1 {
		if first := p.first[st.Ino]; first != "" {
			h.Typeflag, h.Linkname, h.Size, h.PAXRecords = tar.TypeLink, first, 0, nil
		} else {
			p.first[st.Ino] = name
		}
	}
	if err := p.w.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	if hidden {
		return p.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: filepath.Join(name, ".wh..wh..opq"), Format: tar.FormatPAX})
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	f, err := os.Open(at)
	if err != nil {
		return err
	}
	defer f.Close()
	if n, err := io.CopyBuffer(struct{ io.Writer }{p.w}, io.LimitReader(f, st.Size), p.buf); err != nil || n != st.Size {
		return fmt.Errorf("%s: %d of %d bytes: %w", at, n, st.Size, err)
	}
	return nil
}

// extended reads an entry's attributes as PAX records; hidden says that what lies below the directory does not show.
func extended(at string) (records map[string]string, hidden bool, err error) {
	var names [64 << 10]byte
	n, err := unix.Llistxattr(at, names[:])
	if err != nil && err != unix.ENOTSUP {
		return nil, false, &os.PathError{Op: "llistxattr", Path: at, Err: err}
	}
	for name := range strings.SplitSeq(string(names[:max(n, 0)]), "\x00") {
		switch {
		case name == "":
			continue
		case name == overlayTag+"opaque":
			hidden = true
			continue
		case strings.HasPrefix(name, overlayTag):
			continue
		}
		var value [64 << 10]byte
		n, err := unix.Lgetxattr(at, name, value[:])
		if err != nil {
			return nil, false, &os.PathError{Op: "lgetxattr " + name, Path: at, Err: err}
		}
		if records == nil {
			records = map[string]string{}
		}
		records[xattrKey+name] = string(value[:n])
	}
	return records, hidden, nil
}
