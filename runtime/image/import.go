package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"worknode/fault"
)

// Import brings in every image of a docker-archive or OCI layout tar, plain or compressed as a whole. name is for errors.
// A regular file is read in place; anything else is copied below the store's root first.
// Either all images of the tar are in the store when it returns, or none of them. Tags move to the new images.
// Errors: Invalid names the entry at fault; Exhausted if the disk is too small. Repeat: safe, and cheap when the layers
// are there. Crash: nothing of it is left once the store opens again.
func (s *Store) Import(ctx context.Context, r io.Reader, name string) ([]Image, error) {
	list, err := s.importTar(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("image tar %s: %w", name, err)
	}
	return list, nil
}

func (s *Store) importTar(ctx context.Context, r io.Reader) ([]Image, error) {
	f, size, done, err := s.seekable(ctx, r)
	if err != nil {
		return nil, err
	}
	defer done()
	t, err := indexTar(f, size)
	if err != nil {
		return nil, err
	}
	list, err := readArchive(t)
	if err != nil {
		return nil, err
	}
	var held []string
	var fresh []*record
	for _, w := range list {
		im, names, err := s.unpackImage(ctx, w)
		held = append(held, names...)
		if err != nil {
			s.unhold(held)
			if clean := s.Sweep(); clean != nil {
				err = errors.Join(err, clean)
			}
			return nil, err
		}
		fresh = append(fresh, im)
	}
	defer s.unhold(held)
	return s.enter(fresh)
}

// seekable returns the tar as a file that can be read at any place, uncompressed.
func (s *Store) seekable(ctx context.Context, r io.Reader) (f io.ReaderAt, size int64, done func(), err error) {
	if file, ok := r.(*os.File); ok {
		var head [6]byte
		st, err := file.Stat()
		if err == nil && st.Mode().IsRegular() {
			n, err := file.ReadAt(head[:], 0)
			if err != nil && err != io.EOF {
				return nil, 0, nil, err
			}
			if !compressed(head[:n]) {
				return file, st.Size(), func() {}, nil
			}
		}
	}
	plain, closer, _, err := s.expand(ctx, r)
	if err != nil {
		return nil, 0, nil, fault.As(fault.Invalid, err)
	}
	defer closer()
	copied, err := os.CreateTemp(s.staging(), "spool-")
	if err != nil {
		return nil, 0, nil, writeFault(err, "copy: %w", err)
	}
	done = func() { copied.Close(); os.Remove(copied.Name()) }
	size, err = io.Copy(copied, untilDone{ctx, plain})
	if err != nil {
		done()
		var write *os.PathError
		if errors.As(err, &write) || ctx.Err() != nil {
			return nil, 0, nil, writeFault(err, "copy: %w", err)
		}
		return nil, 0, nil, fault.New(fault.Invalid, "after %d bytes: %w", size, err)
	}
	return copied, size, done, nil
}

func compressed(head []byte) bool {
	return len(head) >= 4 && (head[0] == 0x1f && head[1] == 0x8b || string(head[:4]) == "\x28\xb5\x2f\xfd" ||
		head[0]&0xf0 == 0x50 && string(head[1:4]) == "\x2a\x4d\x18" || string(head[:3]) == "BZh" || string(head[:4]) == "\xfd7zX")
}

// untilDone reads until the context ends.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u untilDone) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(p)
}

// unpackImage brings the layers to disk. The names it returns are held, also when it fails.
func (s *Store) unpackImage(ctx context.Context, w wanted) (*record, []string, error) {
	r := &record{Image: Image{ID: w.id.String(), Config: w.config.Config}}
	if w.config.Created != nil {
		r.Created = w.config.Created.UTC().Truncate(time.Second)
	}
	for _, n := range w.names {
		full, err := normal(n)
		if err != nil {
			return nil, nil, err
		}
		r.Tags = with(r.Tags, full)
		if w.manifest != "" {
			d, err := digested(full, w.manifest)
			if err != nil {
				return nil, nil, err
			}
			r.Digests = with(r.Digests, d)
		}
	}
	stack, held, err := s.stack(ctx, w.layers)
	r.Layers = stack
	return r, held, err
}

// enter puts complete images into the table, all of them or none.
func (s *Store) enter(fresh []*record) ([]Image, error) {
	s.mu.Lock()
	before := map[string]record{}
	for id, r := range s.t.Images {
		before[id] = *r
	}
	out := make([]Image, 0, len(fresh))
	for _, r := range fresh {
		r.Size = 1 // CRI asks for more than zero, and a configuration alone has a few bytes
		for _, l := range r.Layers {
			r.Size += s.t.Layers[l].Size
		}
		have := s.t.Images[r.ID]
		if have == nil || have.Hidden {
			tags := r.Tags
			r.Tags = nil
			s.t.Images[r.ID], have = r, r
			for _, t := range tags {
				s.claim(have, t)
			}
		} else {
			if !s.whole(have.Layers) {
				have.Old, have.Layers = slices.Concat(have.Old, have.Layers), r.Layers
			}
			for _, t := range r.Tags {
				s.claim(have, t)
			}
			for _, d := range r.Digests {
				have.Digests = with(have.Digests, d)
			}
		}
	}
	for _, r := range fresh {
		out = append(out, s.show(s.t.Images[r.ID]))
	}
	s.mu.Unlock()
	if err := s.save(); err != nil {
		s.mu.Lock()
		for id := range s.t.Images {
			if old, ok := before[id]; ok {
				*s.t.Images[id] = old
			} else {
				delete(s.t.Images, id)
			}
		}
		s.mu.Unlock()
		return nil, err
	}
	s.wantSync()
	return out, nil
}
