package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/opencontainers/go-digest"

	"worknode/fault"
)

// quiet is how long a file must rest before it is read: a copy in progress writes all the time.
const quiet = 200 * time.Millisecond

// tarFile remembers a tar that was read: as long as the signature holds, there is nothing new in it.
type tarFile struct {
	Size, MTime int64 // bytes; nanoseconds since 1970
	Inode       uint64
	Images      []string // ids
	Tags        []string
}

// ImportDir imports every *.tar of dir, and each that appears or changes later, until ctx ends. A file that was imported
// once is not read again, also by a later process. done (which may be nil) hears of each file that was tried; a file at
// fault is logged once, hinders no other, and is tried again when it changes. dir may appear later; its parent must exist.
// The first pass is over when done is called with an empty path.
func (s *Store) ImportDir(ctx context.Context, dir string, done func(path string, images []Image, err error)) error {
	w, err := fsnotify.NewBufferedWatcher(64)
	if err != nil {
		return fmt.Errorf("watch image folder %s: %w", dir, err)
	}
	defer w.Close()
	if err := w.Add(filepath.Dir(dir)); err != nil {
		return fmt.Errorf("watch image folder %s: %w", dir, err)
	}
	if done == nil {
		done = func(string, []Image, error) {}
	}
	d := &dirImport{s: s, dir: dir, done: done, bad: map[string]tarFile{}}
	s.addDir(d)
	defer s.dropDir(d)
	watchDir := func() {
		if err := w.Add(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			slog.Error("image folder not watched", "dir", dir, "err", err)
		}
	}
	watchDir()
	d.pass(ctx, 0)
	done("", nil, nil)
	rest := time.NewTimer(time.Hour)
	rest.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case ev := <-w.Events:
			switch {
			case ev.Name == filepath.Clean(dir) && ev.Has(fsnotify.Create):
				watchDir()
			case filepath.Dir(ev.Name) != filepath.Clean(dir):
				continue
			}
			rest.Reset(quiet)
		case err := <-w.Errors:
			slog.Warn("image folder: events lost, reading it again", "dir", dir, "err", err)
			rest.Reset(quiet)
		case <-rest.C:
			d.pass(ctx, 0)
		}
	}
}

type dirImport struct {
	s    *Store
	dir  string
	done func(string, []Image, error)

	mu  sync.Mutex         // one pass at a time: Pull makes some, too
	bad map[string]tarFile // files at fault, so that each is reported once
}

// pass reads what is new in the folder and forgets files that are gone. Files that changed less than rest ago are left
// for later; young says that there are some.
func (d *dirImport) pass(ctx context.Context, rest time.Duration) (young bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	list, err := os.ReadDir(d.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		slog.Error("image folder not read", "dir", d.dir, "err", err)
		return false
	}
	there := map[string]bool{}
	for _, e := range list {
		path := filepath.Join(d.dir, e.Name())
		if !strings.HasSuffix(e.Name(), ".tar") || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		there[path] = true
		sign, err := signature(path)
		if err != nil || ctx.Err() != nil || d.s.readBefore(path, sign) || d.bad[path].same(sign) {
			continue
		}
		if age := time.Since(time.Unix(0, sign.MTime)); age >= 0 && age < rest {
			young = true
			continue
		}
		d.try(ctx, path, sign)
	}
	for path := range maps.Keys(d.bad) {
		if !there[path] {
			delete(d.bad, path)
		}
	}
	d.s.forgetFiles(d.dir, there)
	return young
}

func (d *dirImport) try(ctx context.Context, path string, sign tarFile) {
	start := time.Now()
	images, err := d.s.importFile(ctx, path, sign)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		d.bad[path] = sign
		slog.Error("image tar not imported", "file", path, "err", err)
	} else {
		delete(d.bad, path)
		for _, im := range images {
			slog.Info("image imported", "file", path, "image", im.String(), "id", im.ID, "took", time.Since(start).Round(time.Millisecond))
		}
	}
	d.done(path, images, err)
}

// importFile imports one tar and remembers that it did.
func (s *Store) importFile(ctx context.Context, path string, sign tarFile) ([]Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("image tar %s: %w", path, err)
	}
	defer f.Close()
	images, err := s.Import(ctx, f, path)
	if err != nil {
		return nil, err
	}
	for _, im := range images {
		sign.Images = append(sign.Images, im.ID)
		sign.Tags = append(sign.Tags, im.Tags...)
	}
	s.mu.Lock()
	s.t.Files[path] = sign
	s.mu.Unlock()
	return images, s.save()
}

func (s *Store) readBefore(path string, sign tarFile) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	have, ok := s.t.Files[path]
	return ok && have.same(sign)
}

func (s *Store) forgetFiles(dir string, there map[string]bool) {
	s.mu.Lock()
	gone := 0
	for path := range s.t.Files {
		if filepath.Dir(path) == filepath.Clean(dir) && !there[path] {
			delete(s.t.Files, path)
			gone++
		}
	}
	s.mu.Unlock()
	if gone == 0 {
		return
	}
	if err := s.save(); err != nil {
		slog.Error("image table not saved", "root", s.root, "err", err)
	}
}

// FromTar returns the image if a tar of the folders of ImportDir has it. The folders are looked at once more, without
// waiting for their events; an image that was removed is read again from the tar that once brought it. An image id is
// answered from the store, whatever brought it. wait says to wait for files that are still being written, until ctx ends.
// Errors: NotFound if no tar has it: a registry may.
func (s *Store) FromTar(ctx context.Context, ref string, wait bool) (Image, error) {
	full, err := normal(ref)
	if id := "sha256:" + strings.TrimPrefix(ref, "sha256:"); digest.Digest(id).Validate() == nil {
		if im, ok := s.Get(id); ok {
			return im, nil
		}
	}
	if err != nil {
		return Image{}, err
	}
	for {
		young := false
		for _, d := range s.importing() {
			young = d.pass(ctx, quiet) || young
		}
		if im, ok := s.Get(full); ok && s.tarOf(full, im.ID) != "" && s.sound(im) {
			return im, nil
		}
		if !young || !wait {
			break
		}
		select {
		case <-ctx.Done():
			return Image{}, ctx.Err()
		case <-time.After(quiet):
		}
	}
	if from := s.tarOf(full, ""); from != "" {
		if err := s.readAgain(ctx, from); err != nil {
			return Image{}, err
		}
		if im, ok := s.Get(full); ok {
			return im, nil
		}
	}
	return Image{}, fault.New(fault.NotFound, "image %s: no tar file on this node has it", ref)
}

// sound says that no layer of an image is known to be damaged.
func (s *Store) sound(im Image) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.whole(im.Layers)
}

// tarOf finds the tar that brought a name or digest, and if id is not empty, brought it for that image.
func (s *Store) tarOf(full, id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for path, f := range s.t.Files {
		r := s.t.Images[id]
		named := slices.Contains(f.Tags, full) || r != nil && slices.Contains(r.Digests, full)
		if named && (id == "" || slices.Contains(f.Images, id)) {
			return path
		}
	}
	return ""
}

// readAgain imports a tar anew; if it is gone that is no error.
func (s *Store) readAgain(ctx context.Context, from string) error {
	sign, err := signature(from)
	if err != nil {
		return nil //nolint:nilerr // gone: what needed it says so
	}
	_, err = s.importFile(ctx, from, sign)
	return err
}

func (s *Store) addDir(d *dirImport) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirs = append(s.dirs, d)
}

func (s *Store) dropDir(d *dirImport) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirs = slices.DeleteFunc(s.dirs, func(e *dirImport) bool { return e == d })
}

func (s *Store) importing() []*dirImport {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.dirs)
}

func signature(path string) (tarFile, error) {
	st, err := os.Stat(path)
	if err != nil {
		return tarFile{}, err
	}
	if !st.Mode().IsRegular() {
		return tarFile{}, fault.New(fault.Invalid, "%s is not a regular file", path)
	}
	sys := st.Sys().(*syscall.Stat_t)
	return tarFile{Size: st.Size(), MTime: st.ModTime().UnixNano(), Inode: sys.Ino}, nil
}

func (f tarFile) same(o tarFile) bool {
	return f.Size == o.Size && f.MTime == o.MTime && f.Inode == o.Inode
}
