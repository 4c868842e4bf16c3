package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"worknode/task"
)

const (
	perStore = 32 // of all images; a slow registry holds as many as its images have, others go on
)

// LayersAtOnce says how many layers of one image are unpacked at the same time; 3 until then. Call it before the store is
// shared.
func (s *Store) LayersAtOnce(n int) { s.perImage = n }

// Unpacking is how many layers are being unpacked at this moment.
func (s *Store) Unpacking() int { return len(s.turns) }

// Rejecter is a layer's source that has somewhere else to go: Reject says that what was read is wrong; true means that
// opening the layer again reads it from another place.
type Rejecter interface{ Reject() bool }

// staged is a layer that is unpacked but has no place yet.
type staged struct {
	dir     string
	l       *layer
	chain   digest.Digest
	listed  map[string]bool
	implied []string // directories with files of this layer and no entry of their own, parents first
}

// stack brings an image's layers to disk, several at once, and returns their names, topmost first. The names in held
// are held, also when it fails.
func (s *Store) stack(ctx context.Context, layers []blob) (stack, held []string, err error) {
	if len(layers) == 0 {
		// overlayfs needs something to stand on.
		nothing := func(context.Context) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("")), nil }
		layers = []blob{{name: "(none)", diff: digest.FromBytes(nil), open: nothing}}
	}
	slots := chains(layers)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tasks := task.New(ctx)
	defer func() {
		tasks.Stop()
		for _, w := range slots {
			if w.st != nil {
				s.abandon(w.st)
			}
			if w.name != "" {
				held = append(held, w.name)
			}
		}
	}()
	var next atomic.Int64
	for range min(s.perImage, len(slots)) {
		tasks.Go("layers", func(ctx context.Context) {
			for {
				i := int(next.Add(1)) - 1 // the lowest first: the others may need it
				if i >= len(slots) {
					return
				}
				if err := slots[i].bring(ctx, s); err != nil {
					cancel(err) // one that fails ends the others at once, whichever it is
				}
			}
		})
	}
	for _, w := range slots {
		select {
		case <-w.done:
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
		if w.err == nil && w.st != nil {
			st := w.st
			w.st = nil
			w.name, w.err = s.place(st, stack)
		}
		if w.err != nil {
			return nil, nil, w.err
		}
		// overlayfs refuses a directory twice. The upper one decides: it hides and shows the same as the pair.
		stack = slices.DeleteFunc(stack, func(e string) bool { return e == w.name })
		stack = slices.Insert(stack, 0, w.name)
	}
	return stack, nil, nil
}

// slot is one layer of an image that is being brought.
type slot struct {
	blob
	chain digest.Digest
	done  chan struct{} // closed when the fields below are set
	name  string        // held, if not empty
	st    *staged       // unpacked, waits for the layers below
	err   error
}

// chains prepares a slot for each layer. Source: OCI image-spec config.md, "Layer ChainID".
func chains(layers []blob) []*slot {
	out := make([]*slot, len(layers))
	var chain digest.Digest
	for i, b := range layers {
		if chain == "" {
			chain = b.diff
		} else {
			chain = digest.FromString(chain.String() + " " + b.diff.String())
		}
		out[i] = &slot{blob: b, chain: chain, done: make(chan struct{}), err: errors.New("the task that brought it panicked, see the log")}
	}
	return out
}

// bring fills the slot. Once done is closed the slot is the reader's.
func (w *slot) bring(ctx context.Context, s *Store) error {
	defer close(w.done)
	name, st, err := s.bring(ctx, w.blob, w.chain)
	w.name, w.st, w.err = name, st, err
	return err
}

// bring returns the name of the layer on disk, held, or the layer unpacked but without a place, if it has to wait for
// those below. Several that want the same layer at the same time bring it once: the others wait.
//
// Nobody who is waited for waits for anything but data, or for layers further down the same chain: so there is no circle.
func (s *Store) bring(ctx context.Context, b blob, chain digest.Digest) (string, *staged, error) {
	byDiff, byChain := "diff "+b.diff.String(), "chain "+chain.String()
	for {
		s.mu.Lock()
		for name, l := range s.t.Layers {
			if l.Diff == b.diff && !l.Damaged && (l.Chain == "" || l.Chain == chain) {
				s.held[name]++
				s.mu.Unlock()
				b.progress.is(Here)
				return name, nil, nil
			}
		}
		other := s.busy[byChain]
		if other == nil {
			other = s.busy[byDiff]
		}
		if other == nil {
			break
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return "", nil, context.Cause(ctx)
		}
	}
	s.busy[byDiff] = make(chan struct{})
	s.mu.Unlock()

	b.progress.is(Pulling)
	st, err := s.unpackInTurn(ctx, b)
	if err == nil {
		b.progress.is(Unpacked)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.free(byDiff)
	if err != nil {
		return "", nil, err
	}
	if len(st.implied) > 0 {
		st.chain = chain
		s.busy[byChain] = make(chan struct{})
		return "", st, nil
	}
	name, err := s.adoptLayer(st.dir, st.l)
	return name, nil, err
}

// free tells those who wait for a layer to look again. The caller holds mu.
func (s *Store) free(key string) {
	close(s.busy[key])
	delete(s.busy, key)
}

func (s *Store) unpackInTurn(ctx context.Context, b blob) (st *staged, err error) {
	select {
	case s.turns <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() {
		<-s.turns
		if p := recover(); p != nil { // the decoders read what strangers wrote; whoever waits for us must hear of it
			err = fmt.Errorf("layer %s: unpacking panicked: %v", b.name, p)
			slog.Error("unpacking panicked", "layer", b.name, "panic", p)
		}
	}()
	return s.unpackBlob(ctx, b)
}

// place gives a layer its place above those below (topmost first), which its implied directories take after.
func (s *Store) place(st *staged, below []string) (string, error) {
	err := st.inherit(s.Base(), below)
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.free("chain " + st.chain.String())
	if err != nil {
		s.discard(st.dir)
		return "", writeFault(err, "layer %s: directory from the layers below: %w", st.l.Diff, err)
	}
	st.l.Chain = st.chain
	return s.adoptLayer(st.dir, st.l)
}

// abandon drops a layer that will get no place.
func (s *Store) abandon(st *staged) {
	s.discard(st.dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free("chain " + st.chain.String())
}

// inherit gives implied directories the owner, mode, times and attributes that they have in the topmost layer that knows
// them, lest /tmp lose its sticky bit because a layer only brings /tmp/file. Repeat: safe.
// Source: OCI image-spec layer.md (a changeset lists what changed; the rest is as below).
func (st *staged) inherit(base string, below []string) error {
	for _, name := range st.implied {
		at, err := resolve(st.dir, name) // the path may lead over the layer's own links
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue // a later entry removed it
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(st.dir, at)
		if err != nil {
			return err
		}
		if own, err := os.Lstat(at); err != nil || !own.IsDir() || st.listed[rel] {
			continue
		}
		for _, layer := range below {
			root := filepath.Join(base, layer)
			from, err := resolve(root, rel)
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
				continue
			}
			if err != nil {
				return err
			}
			info, err := os.Lstat(from)
			if err != nil {
				return err
			}
			if info.IsDir() { // else it was deleted or replaced there, and what lies further down does not count
				err = copyDirectory(from, info, at)
			}
			if err != nil {
				return err
			}
			break
		}
	}
	return nil
}

// resolve finds what name leads to when root is the root directory.
func resolve(root, name string) (string, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", root, err)
	}
	defer unix.Close(dir)
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(dir, name, how)
	if err != nil {
		return "", &os.PathError{Op: "openat2", Path: filepath.Join(root, name), Err: err}
	}
	defer unix.Close(fd)
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
}

func copyDirectory(from string, info os.FileInfo, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	if err := os.Chown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := os.Chmod(to, info.Mode()); err != nil {
		return err
	}
	var names [4 << 10]byte
	n, err := unix.Llistxattr(from, names[:])
	if err != nil && err != unix.ENOTSUP && err != unix.ERANGE {
		return fmt.Errorf("%s: attributes: %w", from, err)
	}
	for name := range strings.SplitSeq(string(names[:max(n, 0)]), "\x00") {
		if name == "" || strings.HasPrefix(name, overlayTag) { // marks speak of the layer they are in
			continue
		}
		var value [64 << 10]byte
		n, err := unix.Lgetxattr(from, name, value[:])
		if err == nil {
			err = unix.Lsetxattr(to, name, value[:n], 0)
		}
		if err != nil && err != unix.ENOTSUP {
			return fmt.Errorf("%s: attribute %s: %w", to, name, err)
		}
	}
	return os.Chtimes(to, info.ModTime(), info.ModTime())
}
