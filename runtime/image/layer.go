package image

import (
	"archive/tar"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/task"
)

// Bounds on what one layer may ask of the disk; real layers stay far below.
const (
	maxInodes  = 4 << 20
	maxNames   = 64 << 20 // bytes of directories' names, which we keep in memory; 100,000 directories have 10 MiB
	maxTail    = 64 << 20 // bytes after the tar's end, which some tools pad
	checkEvery = 16 << 20 // bytes written between two looks at the free space
	reserve    = 64 << 20 // bytes that are left free, or a fiftieth of a small disk
	overlayTag = "trusted.overlay."
)

// blob is one layer as it lies in an archive or a registry.
type blob struct {
	name   string        // entry in the archive or digest in the registry, for errors
	digest digest.Digest // of the bytes as they lie; empty if only the diff id is known
	diff   digest.Digest // of the tar inside
	size   int64         // bytes as they lie; zero if not known
	open   func(ctx context.Context) (io.ReadCloser, error)

	progress *LayerProgress // may be nil
}

// adoptLayer gives an unpacked directory its place. The caller holds mu.
func (s *Store) adoptLayer(dir string, l *layer) (string, error) {
	for salt := 0; ; salt++ {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %d", l.Diff, l.Chain, salt))
		name := hex.EncodeToString(sum[:5])
		err := os.Rename(dir, filepath.Join(s.Base(), name))
		if err == nil {
			err = os.Rename(sumsOf(dir), filepath.Join(s.sums(), name)) // nobody knows the layer before the table is saved
		}
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
		s.discard(dir)
		return "", writeFault(err, "place layer %s: %w", l.Diff, err)
	}
}

// sumsOf is where a layer's checksums are until it has a place.
func sumsOf(dir string) string { return dir + ".sums" }

// discard drops a layer that has no place.
func (s *Store) discard(dir string) {
	os.RemoveAll(dir)
	os.Remove(sumsOf(dir))
}

// unhold lets go of layers that bring returned.
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
// A source that can be asked elsewhere (Rejecter) is asked once more per refusal when the content is wrong.
func (s *Store) unpackBlob(ctx context.Context, b blob) (*staged, error) {
	for {
		dir, err := s.stagingDir("layer-")
		if err != nil {
			return nil, writeFault(err, "layer %s: %w", b.name, err)
		}
		st, raw, err := s.unpackFrom(ctx, dir, b)
		if err == nil {
			return st, nil
		}
		s.discard(dir)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		again, ok := raw.(Rejecter)
		if !ok || !fault.Is(err, fault.Invalid) || !again.Reject() {
			return nil, err
		}
		slog.Warn("layer is damaged, asking another host", "layer", b.name, "error", err)
	}
}

// unpackFrom opens the layer's source and unpacks it; the source it returns is closed.
func (s *Store) unpackFrom(ctx context.Context, dir string, b blob) (*staged, io.Reader, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	raw, err := b.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer raw.Close()
	st, err := s.unpackInto(ctx, stop, dir, b, raw)
	return st, raw, err
}

// unpackInto unpacks a layer that comes from a source; stop ends a read that nobody needs any more.
func (s *Store) unpackInto(ctx context.Context, stop func(), dir string, b blob, from io.Reader) (*staged, error) {
	whole := sha256.New()
	b.progress.again()
	raw := &failing{r: io.TeeReader(from, whole), came: b.progress.came}
	plain, closer, packed, err := s.expand(ctx, raw)
	if err != nil {
		return nil, b.blame(raw, fault.New(fault.Invalid, "layer %s: %w", b.name, err))
	}
	inner := sha256.New()
	tasks := task.New(ctx)
	stream := readAhead(tasks, plain, inner)
	defer closer() // when nobody reads any more
	defer tasks.Stop()
	defer stop()
	st, err := unpack(ctx, dir, stream)
	if err != nil {
		return nil, b.blame(raw, fmt.Errorf("layer %s: %w", b.name, err))
	}
	// The digests cover what lies behind the tar's end marker, too.
	if n, err := io.Copy(io.Discard, io.LimitReader(stream, maxTail)); err != nil || n == maxTail {
		return nil, b.blame(raw, fault.New(fault.Invalid, "layer %s: after the last file: %w", b.name, cmp.Or(err, errors.New("too many stray bytes"))))
	}
	tasks.Wait() // from here on raw is ours
	if packed {
		if _, err := io.Copy(io.Discard, raw); err != nil {
			return nil, b.blame(raw, fault.New(fault.Invalid, "layer %s: after the last file: %w", b.name, err))
		}
	}
	if got := digest.NewDigest(digest.SHA256, whole); b.digest != "" && got != b.digest {
		return nil, damaged(b.name, "content", got, b.digest)
	}
	if got := digest.NewDigest(digest.SHA256, inner); got != b.diff {
		return nil, damaged(b.name, "unpacked content", got, b.diff)
	}
	st.l.Diff, st.l.Unsynced = b.diff, s.boot
	return st, nil
}

// failing remembers why its source ended: what reads through a decoder and a tar cannot tell a broken network from
// broken content.
type failing struct {
	r    io.Reader
	came func(int)
	err  atomic.Pointer[error] // the reader's task sets it
}

func (f *failing) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	f.came(n)
	if err != nil && err != io.EOF {
		f.err.CompareAndSwap(nil, &err)
	}
	return n, err
}

// blame puts the source's own error in place of what its readers made of it.
func (b blob) blame(raw *failing, err error) error {
	if own := raw.err.Load(); own != nil {
		return fmt.Errorf("layer %s: %w", b.name, *own)
	}
	return err
}

func damaged(name, what string, got, want digest.Digest) error {
	err := fault.New(fault.Invalid, "layer %s: %s has digest %s, the image says %s", name, what, got, want)
	return fault.Hint(err, "the content is damaged: build, copy or push it again")
}

// unpack writes the files of a layer tar below dir, which no one else changes meanwhile.
// Source: OCI image-spec layer.md; kernel overlayfs document, "whiteouts and opaque directories".
//
// It needs no other layer, so that layers can be unpacked side by side; see staged.inherit for what is left to do.
func unpack(ctx context.Context, dir string, r io.Reader) (*staged, error) {
	c := &checks{dir: dir, listed: map[string]bool{".": true}, implied: map[string]bool{}, l: &layer{}}
	c.unchecked = checkEvery // so that the first file is checked
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	err := c.unpack(ctx, tar.NewReader(r))
	switch {
	case err == nil:
		return &staged{dir: dir, l: c.l, listed: c.listed, implied: slices.Sorted(maps.Keys(c.implied))}, nil
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

func (c *checks) unpack(ctx context.Context, from *tar.Reader) error {
	t, err := openFolder(c.dir)
	if err != nil {
		return err
	}
	defer t.close()
	if t.sums, err = newSums(sumsOf(c.dir)); err != nil {
		return err
	}
	defer t.sums.f.Close() // again, after an error
	for {
		h, err := from.Next()
		if err == io.EOF {
			if err := t.sums.close(); err != nil {
				return err
			}
			return t.finish()
		}
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if ok, err := c.entry(h); err != nil {
			return err
		} else if !ok {
			continue
		}
		if err := t.add(h, from); err != nil {
			return err
		}
	}
}

// checks judges each entry before it is written and counts what the layer takes.
type checks struct {
	dir    string
	last   string          // name of the entry at hand, as the tar spells it
	listed map[string]bool // directories with an entry of their own
	// implied are directories that have files in this layer, and no entry so far.
	implied map[string]bool
	names   int // bytes of the names in both
	l       *layer
	// unchecked is what was written since the free space was looked at.
	unchecked int64
}

// entry judges one entry; false leaves it out.
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
	for up := path.Dir(name); !c.listed[up] && !c.implied[up]; up = path.Dir(up) {
		c.implied[up] = true
		c.names += len(up)
	}
	if h.Typeflag == tar.TypeDir && !c.listed[name] {
		c.listed[name] = true
		c.names += len(name)
		delete(c.implied, name)
	}
	if c.names > maxNames {
		return false, fault.New(fault.Invalid, "the names of the layer's directories have more than %d bytes", maxNames)
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

// room counts the entry's bytes and refuses what cannot fit: a sparse entry may claim exabytes in a few bytes, and a small
// blob may unpack to more than the disk has. Some space is left, so that the node's other work goes on.
func (c *checks) room(h *tar.Header) error {
	bytes := (h.Size + 4095) &^ 4095
	if h.Typeflag == tar.TypeDir {
		bytes += 4096
	}
	if c.unchecked += bytes; c.unchecked >= checkEvery || h.Size < 0 {
		c.unchecked = 0
		if free, err := freeSpace(c.dir); err == nil && (h.Size < 0 || bytes > free) {
			err := fault.New(fault.Exhausted, "it has %d bytes, the disk has %d free", h.Size, free)
			return fault.Hint(err, "free space below the runtime's root, if the image is sound")
		}
	}
	c.l.Size += h.Size
	c.l.Disk += bytes
	return nil
}

// freeSpace is how many bytes may be written at dir, less a reserve.
func freeSpace(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return max(int64(st.Bavail)*st.Bsize-min(reserve, int64(st.Blocks)*st.Bsize/50), 0), nil
}

func outside(name string) bool {
	name = path.Clean(name)
	return name == ".." || strings.HasPrefix(name, "../")
}
