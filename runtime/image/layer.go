package image

import (
	"archive/tar"
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"worknode/fault"
)

// Bounds on what one layer may ask of the disk; real layers stay far below.
const (
	maxInodes  = 4 << 20
	maxTail    = 64 << 20  // bytes after the tar's end, which some tools pad
	maxWindow  = 128 << 20 // bytes of zstd history
	minFree    = 16 << 20  // bytes: smaller files are not checked against the free space one by one
	overlayTag = "trusted.overlay."
)

// blob is one layer as it lies in an archive.
type blob struct {
	name   string        // entry in the archive, for errors
	digest digest.Digest // of the bytes as they lie; empty if only the diff id is known
	diff   digest.Digest // of the tar inside
	open   func() (io.Reader, error)
}

// ensureLayer returns the name of the layer on disk, unpacking it if no image brought it yet, and holds it (see held).
// Unpackings of one layer by several imports are one: the others wait for it. below are the layers under it, topmost
// first; chain is its chain id.
func (s *Store) ensureLayer(ctx context.Context, b blob, chain digest.Digest, below []string) (string, error) {
	for {
		s.mu.Lock()
		for name, l := range s.t.Layers {
			if l.Diff == b.diff && (l.Chain == "" || l.Chain == chain) {
				s.held[name]++
				s.mu.Unlock()
				return name, nil
			}
		}
		other := s.busy[b.diff.String()]
		if other == nil {
			break
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	done := make(chan struct{})
	s.busy[b.diff.String()] = done
	s.mu.Unlock()

	dir, l, err := s.unpackBlob(ctx, b, below)

	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.busy, b.diff.String())
	close(done)
	if err != nil {
		return "", err
	}
	if l.Chain != "" {
		l.Chain = chain
	}
	return s.adoptLayer(dir, l)
}

// adoptLayer gives an unpacked directory its place. The caller holds mu.
func (s *Store) adoptLayer(dir string, l *layer) (string, error) {
	for salt := 0; ; salt++ {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %d", l.Diff, l.Chain, salt))
		name := hex.EncodeToString(sum[:5])
		err := os.Rename(dir, filepath.Join(s.Base(), name))
		if err == nil {
			s.t.Layers[name] = l
			s.held[name]++
			return name, nil
		}
		// Taken by another layer, or by one that a damaged table no longer knows and a container may still use.
		// (An empty directory would be replaced silently; that one is worth nothing.)
		if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
			if salt < 100 {
				continue
			}
		}
		os.RemoveAll(dir)
		return "", writeFault(err, "place layer %s: %w", l.Diff, err)
	}
}

// unhold lets go of layers that ensureLayer returned.
func (s *Store) unhold(names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range names {
		if s.held[n]--; s.held[n] <= 0 {
			delete(s.held, n)
		}
	}
}

// unpackBlob unpacks a layer below staging and checks its digests; on error nothing of it is left.
// The layer's Chain is set (the caller knows to what) if it needs the layers below for the modes of directories.
func (s *Store) unpackBlob(ctx context.Context, b blob, below []string) (string, *layer, error) {
	dir, err := s.stagingDir("layer-")
	if err != nil {
		return "", nil, writeFault(err, "layer %s: %w", b.name, err)
	}
	l, err := s.unpackInto(ctx, dir, b, below)
	if err != nil {
		os.RemoveAll(dir)
		return "", nil, err
	}
	return dir, l, nil
}

func (s *Store) unpackInto(ctx context.Context, dir string, b blob, below []string) (*layer, error) {
	raw, err := b.open()
	if err != nil {
		return nil, err
	}
	whole := sha256.New()
	raw = io.TeeReader(raw, whole)
	plain, closer, packed, err := expand(raw)
	if err != nil {
		return nil, fault.New(fault.Invalid, "layer %s: %w", b.name, err)
	}
	defer closer()
	inner := whole
	if packed {
		inner = sha256.New()
		plain = io.TeeReader(plain, inner)
	}
	parents := make([]string, len(below))
	for i, name := range below {
		parents[i] = filepath.Join(s.Base(), name)
	}
	l, err := unpack(ctx, dir, plain, parents)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", b.name, err)
	}
	// The digests cover what lies behind the tar's end marker, too.
	if n, err := io.Copy(io.Discard, io.LimitReader(plain, maxTail)); err != nil || n == maxTail {
		return nil, fault.New(fault.Invalid, "layer %s: after the last file: %w", b.name, cmp.Or(err, errors.New("too many stray bytes")))
	}
	if _, err := io.Copy(io.Discard, raw); err != nil {
		return nil, fault.New(fault.Invalid, "layer %s: after the last file: %w", b.name, err)
	}
	if got := digest.NewDigest(digest.SHA256, whole); b.digest != "" && got != b.digest {
		return nil, damaged(b.name, "content", got, b.digest)
	}
	if got := digest.NewDigest(digest.SHA256, inner); got != b.diff {
		return nil, damaged(b.name, "unpacked content", got, b.diff)
	}
	l.Diff, l.Unsynced = b.diff, s.boot
	return l, nil
}

func damaged(name, what string, got, want digest.Digest) error {
	err := fault.New(fault.Invalid, "layer %s: %s has digest %s, the image says %s", name, what, got, want)
	return fault.Hint(err, "the file is damaged: build or copy it again")
}

// expand recognises gzip and zstd by their first bytes; packed says that it found one. closer frees the decoder.
func expand(r io.Reader) (plain io.Reader, closer func(), packed bool, err error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(6)
	if err != nil && err != io.EOF {
		return nil, nil, false, err
	}
	switch s := string(head); {
	case strings.HasPrefix(s, "\x1f\x8b"):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, false, fmt.Errorf("gzip: %w", err)
		}
		return z, func() { z.Close() }, true, nil
	case strings.HasPrefix(s, "\x28\xb5\x2f\xfd"), len(s) >= 4 && s[0]&0xf0 == 0x50 && s[1:4] == "\x2a\x4d\x18":
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, nil, false, fmt.Errorf("zstd: %w", err)
		}
		return z, z.Close, true, nil
	case strings.HasPrefix(s, "BZh"), strings.HasPrefix(s, "\xfd7zXZ"):
		return nil, nil, false, errors.New("compressed by bzip2 or xz; images may use gzip, zstd or nothing")
	}
	return br, func() {}, false, nil
}

// unpack writes the files of a layer tar below dir, which no one else changes meanwhile.
// Source: OCI image-spec layer.md; kernel overlayfs document, "whiteouts and opaque directories".
func unpack(ctx context.Context, dir string, r io.Reader, parents []string) (*layer, error) {
	c := &checks{dir: dir, listed: map[string]bool{".": true}, whited: map[string]bool{}, l: &layer{}}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	_, err := archive.Apply(ctx, dir, r,
		archive.WithFilter(c.entry), archive.WithConvertWhiteout(c.whiteout), archive.WithParents(parents))
	switch {
	case err == nil:
		return c.l, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case c.last == "":
		return nil, fault.New(fault.Invalid, "not a tar: %w", err)
	case fault.Of(err) != fault.Unknown:
		return nil, fmt.Errorf("file %q: %w", c.last, err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EROFS), errors.Is(err, unix.EPERM):
		return nil, writeFault(err, "file %q: %w", c.last, err)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return nil, fault.New(fault.Invalid, "ends within or after file %q: it is cut short", c.last)
	}
	return nil, fault.New(fault.Invalid, "at or after file %q: %w", c.last, err)
}

// checks judges each entry before it is written and counts what the layer takes.
type checks struct {
	dir    string
	last   string          // name of the entry at hand, as the tar spells it
	listed map[string]bool // directories with an entry of their own
	whited map[string]bool // paths on disk that hold a whiteout of this layer
	l      *layer
}

// entry is archive.Filter.
func (c *checks) entry(h *tar.Header) (bool, error) {
	c.last = h.Name
	if h.Typeflag == tar.TypeXGlobalHeader {
		return false, nil
	}
	if outside(h.Name) || h.Typeflag == tar.TypeLink && outside(h.Linkname) {
		return false, fault.New(fault.Invalid, "its path or link target leaves the image")
	}
	name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	if name == "" {
		return true, nil // the root itself
	}
	if base := path.Base(name); strings.HasPrefix(base, ".wh..wh.") && base != ".wh..wh..opq" {
		return false, nil // book-keeping of AUFS
	}
	if c.l.Inodes++; c.l.Inodes > maxInodes {
		return false, fault.New(fault.Invalid, "the layer has more than %d files", maxInodes)
	}
	if !c.listed[path.Dir(name)] {
		c.l.Chain = "implied"
	}
	if h.Typeflag == tar.TypeDir {
		c.listed[name] = true
	}
	if err := c.room(h); err != nil {
		return false, err
	}
	for key := range h.PAXRecords {
		// These would let an image redirect lookups in the stack of its layers; only we write them.
		if x, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok && (strings.HasPrefix(x, overlayTag) || strings.HasPrefix(x, "user.overlay.")) {
			delete(h.PAXRecords, key)
		}
	}
	return true, nil
}

// room counts the entry's bytes and refuses what cannot fit: a sparse entry may claim exabytes in a few bytes.
func (c *checks) room(h *tar.Header) error {
	if h.Size > minFree {
		var st unix.Statfs_t
		if err := unix.Statfs(c.dir, &st); err == nil && h.Size > int64(st.Bavail)*st.Bsize {
			err := fault.New(fault.Exhausted, "it has %d bytes, the disk has %d free", h.Size, int64(st.Bavail)*st.Bsize)
			return fault.Hint(err, "free space below the runtime's root, if the image is sound")
		}
	}
	c.l.Size += h.Size
	c.l.Disk += (h.Size + 4095) &^ 4095
	if h.Typeflag == tar.TypeDir {
		c.l.Disk += 4096
	}
	return nil
}

func outside(name string) bool {
	name = path.Clean(name)
	return name == ".." || strings.HasPrefix(name, "../")
}

// whiteout is archive.ConvertWhiteout: it turns the tar's marks into overlayfs' own. Marks speak of the layers below
// only, so what this layer itself brings under a marked name stays, whichever came first.
func (c *checks) whiteout(h *tar.Header, at string) (write bool, err error) {
	dir, base := filepath.Split(at)
	switch {
	case base == ".wh..wh..opq":
		return false, opaque(dir)
	case strings.HasPrefix(base, ".wh."):
		target := filepath.Join(dir, strings.TrimPrefix(base, ".wh."))
		st, err := os.Lstat(target)
		switch {
		case err == nil && st.IsDir():
			return false, opaque(target)
		case err == nil:
			return false, nil
		}
		if err := unix.Mknod(target, unix.S_IFCHR, 0); err != nil {
			return false, fmt.Errorf("whiteout: %w", err)
		}
		c.whited[target] = true
		return false, nil
	case c.whited[at]:
		delete(c.whited, at)
		if h.Typeflag != tar.TypeDir {
			return true, nil
		}
		// The directory below is deleted and a new one comes in its place: the old content must not shine through.
		if err := os.Remove(at); err != nil {
			return false, err
		}
		if err := os.Mkdir(at, 0o700); err != nil {
			return false, err
		}
		return true, opaque(at)
	}
	return true, nil
}

func opaque(dir string) error {
	if err := unix.Setxattr(dir, overlayTag+"opaque", []byte("y"), 0); err != nil {
		return fmt.Errorf("mark directory opaque: %w", err)
	}
	return nil
}
