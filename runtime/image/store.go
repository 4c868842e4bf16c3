// Package image keeps the node's images: it unpacks their layers into directories that overlayfs can stack, remembers
// which image is made of which layers, and brings images in from tar files. It mounts nothing and starts nothing.
//
// On disk, below the store's root:
//
//	images.json   the table: images, layers, tar files already read; replaced whole, by rename
//	l/NAME/       one unpacked layer, in overlayfs' own words (whiteouts, opaque marks); names are short, because all
//	              layers of a container must fit one mount option string of 4 KiB
//	sums/NAME     checksums of the files of a layer, see Verify
//	staging/      what is being written or deleted; emptied when the store opens
//
// A layer is complete before it gets its name, and an image is in the table only when all its layers are. Layers reach
// the disk in the background: until then the table marks them with the boot they were written in, and a store that
// opens after another boot (power cut) drops the marked ones with their images. So an image is whole or absent.
package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/task"
)

// Image is a snapshot of one image in the store; callers may keep it and must not change its slices or maps.
type Image struct {
	ID      string   // "sha256:…", the digest of the image's configuration; the one identifier everywhere
	Tags    []string // full names such as docker.io/library/web:1, sorted
	Digests []string // full names such as docker.io/library/web@sha256:…, sorted; empty if no manifest was seen
	Size    int64    // bytes of all files in all layers
	Created time.Time
	Config  ocispec.ImageConfig
	Layers  []string // topmost first, relative to Base
	Pinned  bool     `json:"-"` // not to be removed by whoever cleans up; see Pin
}

// layer is one unpacked directory.
type layer struct {
	Diff digest.Digest
	// Chain is set if the layer has files in directories it does not list: those took mode and owner from the layers
	// below, so only an image with the same layers below may share it. Source: OCI image-spec config.md, "Layer ChainID".
	Chain    digest.Digest `json:",omitempty"`
	Size     int64         // bytes of its files
	Disk     int64         // bytes of disk, estimated in blocks of 4 KiB
	Inodes   int64
	Unsynced string `json:",omitempty"` // boot id; empty once the disk has it
	Damaged  bool   `json:",omitempty"` // Verify found it wanting: it serves those who stand on it, and no new image
}

type record struct {
	Image
	Hidden bool     `json:",omitempty"` // removed, but containers still use its layers
	Old    []string `json:",omitempty"` // damaged layers that were replaced, kept while containers use the image
}

// table is what images.json holds.
type table struct {
	Version int
	Images  map[string]*record
	Layers  map[string]*layer
	Files   map[string]tarFile // by path: tar files that ImportDir has read
	// Orphans are layers of a table that was lost, with the boot in which running containers may stand on them.
	Orphans map[string]string `json:",omitempty"`
}

const tableVersion = 1

// Store is the images of one root directory. Its methods may be called from several goroutines.
type Store struct {
	root     string
	boot     string
	lock     *os.File
	tasks    *task.Group
	perImage int
	dirty    chan struct{} // asks for a sync of the file system
	turns    chan struct{} // one for each layer that is being unpacked
	wide     chan struct{} // one for each decoder with a large window

	saving sync.Mutex // taken before mu: writes of the table keep their order

	mu     sync.Mutex
	t      table
	pinned []string                 // patterns of names
	dirs   []*dirImport             // folders that are being watched
	used   map[string]int           // image id -> Use less Release
	held   map[string]int           // layer name -> imports that rely on it
	busy   map[string]chan struct{} // "diff ID" or "chain ID" -> closed when that layer's unpacking, or its wait for a place, ends
}

// Open opens the store at root, making it if absent, and removes what a crash left unfinished.
// Errors: Busy if another process has it open. A table that cannot be read is set aside and logged: the store then
// starts empty, images return by import, and layers that running containers may stand on stay until the next boot.
// The store syncs in the background until Close.
func Open(root string) (*Store, error) {
	s := &Store{
		root: root, tasks: task.New(context.Background()), dirty: make(chan struct{}, 1),
		perImage: 3, turns: make(chan struct{}, perStore), wide: make(chan struct{}, 1), used: map[string]int{}, held: map[string]int{}, busy: map[string]chan struct{}{},
	}
	if err := s.open(); err != nil {
		if s.lock != nil {
			s.lock.Close()
		}
		return nil, fmt.Errorf("image store %s: %w", root, err)
	}
	s.tasks.Go("image-sync", s.settle)
	s.dirty <- struct{}{} // a predecessor may have been killed before its sync
	return s, nil
}

func (s *Store) open() error {
	for _, dir := range []string{s.root, s.Base(), s.sums(), s.staging()} {
		// Layers hold setuid programs and device nodes: nobody but root may walk in.
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	s.spread()
	if err := s.own(); err != nil {
		return err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	s.boot = strings.TrimSpace(string(boot))
	if err := prune(s.staging(), nil); err != nil {
		return err
	}
	changed, err := s.load()
	if err != nil {
		return err
	}
	if s.dropIncomplete() || changed {
		if err := s.save(); err != nil {
			return err
		}
	}
	known := func(name string) bool { return s.t.Layers[name] != nil || s.t.Orphans[name] != "" }
	if err := prune(s.sums(), known); err != nil {
		return err
	}
	return prune(s.Base(), known)
}

// spread asks ext4 to place each layer in a part of the disk of its own, as it does with users' homes. Elsewhere a new
// inode is sought among those deleted a moment ago: 0.2 to 0.35 ms each on a busy disk, against 0.015 ms (measured).
// Other file systems do not know the flag and need none. Source: chattr(1), attribute T; kernel fs/ext4/ialloc.c.
func (s *Store) spread() {
	dir, err := os.Open(s.staging())
	if err != nil {
		return
	}
	defer dir.Close()
	if flags, err := unix.IoctlGetInt(int(dir.Fd()), unix.FS_IOC_GETFLAGS); err == nil {
		_ = unix.IoctlSetPointerInt(int(dir.Fd()), unix.FS_IOC_SETFLAGS, flags|topDir)
	}
}

// topDir is FS_TOPDIR_FL. Source: include/uapi/linux/fs.h.
const topDir = 0x00020000

// own takes the store's lock, which ends with this process.
func (s *Store) own() error {
	f, err := os.OpenFile(filepath.Join(s.root, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	s.lock = f
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fault.Hint(fault.New(fault.Busy, "lock: %w", err), "another runtime uses this root: stop it, or choose another --root")
	}
	return nil
}

// load reads the table; changed asks for a save.
func (s *Store) load() (changed bool, err error) {
	data, err := os.ReadFile(s.tablePath())
	switch {
	case errors.Is(err, os.ErrNotExist):
		changed = true
		err = s.adoptOrphans()
	case err == nil:
		err = json.Unmarshal(data, &s.t)
		if err == nil && s.t.Version != tableVersion {
			err = fmt.Errorf("version %d, this build reads %d", s.t.Version, tableVersion)
		}
		if err == nil {
			err = s.t.check()
		}
		if err != nil {
			changed = true
			aside := s.tablePath() + ".bad"
			slog.Error("image table unreadable, starting empty: import the images again", "table", s.tablePath(), "kept", aside, "err", err)
			if err = os.Rename(s.tablePath(), aside); err == nil {
				err = s.adoptOrphans()
			}
		}
	}
	s.t.Version = tableVersion
	if s.t.Images == nil {
		s.t.Images = map[string]*record{}
	}
	if s.t.Layers == nil {
		s.t.Layers = map[string]*layer{}
	}
	if s.t.Files == nil {
		s.t.Files = map[string]tarFile{}
	}
	for name, boot := range s.t.Orphans {
		if boot != s.boot {
			delete(s.t.Orphans, name)
			changed = true
		}
	}
	return changed, err
}

// check finds what no build of ours writes. Names of layers become paths, and what is nil would be followed.
func (t *table) check() error {
	for id, r := range t.Images {
		if r == nil || r.ID != id || digest.Digest(id).Validate() != nil {
			return fmt.Errorf("image %q: its record is damaged", id)
		}
		if i := slices.IndexFunc(slices.Concat(r.Layers, r.Old), func(n string) bool { return !layerName(n) }); i >= 0 {
			return fmt.Errorf("image %q: layer %d has an impossible name", id, i+1)
		}
	}
	for name, l := range t.Layers {
		if !layerName(name) || l == nil || l.Diff.Validate() != nil {
			return fmt.Errorf("layer %q: its record is damaged", name)
		}
	}
	for name := range t.Orphans {
		if name == "" || name != filepath.Base(name) || name == ".." {
			return fmt.Errorf("orphan %q: an impossible name", name)
		}
	}
	return nil
}

// layerName recognises the names that adoptLayer gives.
func layerName(s string) bool { return len(s) == 10 && strings.Trim(s, "0123456789abcdef") == "" }

// adoptOrphans starts an empty table beside the layers that are on disk: containers may run on them until the next boot.
func (s *Store) adoptOrphans() error {
	s.t = table{Orphans: map[string]string{}}
	list, err := os.ReadDir(s.Base())
	for _, e := range list {
		s.t.Orphans[e.Name()] = s.boot
	}
	return err
}

// dropIncomplete forgets layers that are gone or may have holes, images made of them, and layers without an image.
func (s *Store) dropIncomplete() (changed bool) {
	for name, l := range s.t.Layers {
		_, err := os.Lstat(filepath.Join(s.Base(), name))
		if err != nil || l.Unsynced != "" && l.Unsynced != s.boot {
			delete(s.t.Layers, name)
			changed = true
		}
	}
	needed := map[string]bool{}
	for id, im := range s.t.Images {
		if slices.ContainsFunc(im.Layers, func(l string) bool { return s.t.Layers[l] == nil }) {
			slog.Warn("image dropped: not all of it had reached the disk", "image", id, "tags", im.Tags)
			delete(s.t.Images, id)
			for path, f := range s.t.Files {
				if slices.Contains(f.Images, id) {
					delete(s.t.Files, path) // so that ImportDir reads it again
				}
			}
			changed = true
			continue
		}
		for _, l := range slices.Concat(im.Layers, im.Old) {
			needed[l] = true
		}
	}
	for name := range s.t.Layers {
		if !needed[name] {
			delete(s.t.Layers, name)
			changed = true
		}
	}
	return changed
}

// prune removes every entry of dir that keep does not claim.
func prune(dir string, keep func(name string) bool) error {
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if keep != nil && keep(e.Name()) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Close ends the background sync and releases the store.
func (s *Store) Close() error {
	s.tasks.Stop()
	return s.lock.Close()
}

// Base is the directory that Image.Layers are relative to.
func (s *Store) Base() string      { return filepath.Join(s.root, "l") }
func (s *Store) sums() string      { return filepath.Join(s.root, "sums") }
func (s *Store) staging() string   { return filepath.Join(s.root, "staging") }
func (s *Store) tablePath() string { return filepath.Join(s.root, "images.json") }

// save writes the table as it is now. The caller does not hold mu.
func (s *Store) save() error {
	s.saving.Lock()
	defer s.saving.Unlock()
	s.mu.Lock()
	data, err := json.Marshal(&s.t)
	s.mu.Unlock()
	if err == nil {
		err = replace(s.tablePath(), s.tablePath()+".new", data)
	}
	if err != nil {
		return writeFault(err, "image table: %w", err)
	}
	return nil
}

func replace(path, temp string, data []byte) error {
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync() // without it a power cut may leave an empty file under the new name
	}
	if err1 := f.Close(); err == nil {
		err = err1
	}
	if err != nil {
		os.Remove(temp)
		return err
	}
	return os.Rename(temp, path)
}

// writeFault gives an error of writing the kind that tells a full or read-only disk from other trouble.
func writeFault(err error, format string, args ...any) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fault.Hint(fault.New(fault.Exhausted, format, args...), "free space below the runtime's root")
	case errors.Is(err, unix.EROFS):
		return fault.Hint(fault.New(fault.Denied, format, args...), "remount the runtime's root writable, or choose another --root")
	}
	return fmt.Errorf(format, args...)
}

// settle brings new layers to the disk whenever asked, one sync for all that came since the last, and clears their marks.
func (s *Store) settle(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.dirty:
		}
		s.mu.Lock()
		var fresh []*layer
		for _, l := range s.t.Layers {
			if l.Unsynced != "" {
				fresh = append(fresh, l)
			}
		}
		s.mu.Unlock()
		if len(fresh) == 0 {
			continue
		}
		if err := unix.Syncfs(int(s.lock.Fd())); err != nil {
			slog.Error("new image layers may be lost by a power cut", "root", s.root, "err", fmt.Errorf("syncfs: %w", err))
			continue
		}
		s.mu.Lock()
		for _, l := range fresh {
			l.Unsynced = ""
		}
		s.mu.Unlock()
		if err := s.save(); err != nil {
			slog.Error("image table not saved", "root", s.root, "err", err)
		}
	}
}

func (s *Store) wantSync() {
	select {
	case s.dirty <- struct{}{}:
	default: // one is asked for already, and it will see our layers too
	}
}
