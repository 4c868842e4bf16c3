package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"worknode/fault"
	"worknode/step"
)

// version is written into every record; older ones must keep opening (testdata).
const version = 1

// bootFile names the machine's current boot; another name means that all records describe processes that are gone.
const bootFile = "/proc/sys/kernel/random/boot_id"

// Store keeps sandboxes and containers in memory and one small file each below a directory on tmpfs.
// Writes are a rename, never a sync: the records need to outlive this process, not the machine.
type Store struct {
	dir string

	mu         sync.RWMutex
	sandboxes  map[string]*Sandbox
	containers map[string]*Container
}

// Open reads the records below dir, making it if absent. Records of an earlier boot are dropped as a whole; a record
// that cannot be read costs that object only: its file is set aside with the ending .bad and named in bad.
func Open(dir string) (s *Store, bad []error, err error) {
	s = &Store{dir: dir, sandboxes: map[string]*Sandbox{}, containers: map[string]*Container{}}
	if err := s.voidOldBoot(); err != nil {
		return nil, nil, err
	}
	for _, kind := range []string{"sandboxes", "containers"} {
		if err := os.MkdirAll(filepath.Join(dir, kind), 0o700); err != nil {
			return nil, nil, fault.New(fault.Denied, "state folder: %w", err)
		}
	}
	bad = append(bad, read(filepath.Join(dir, "sandboxes"), func(id string, v *Sandbox) error {
		if v.ID != id || v.Config == nil {
			return fmt.Errorf("it is not a whole record of %s", id)
		}
		s.sandboxes[id] = v
		return nil
	})...)
	bad = append(bad, read(filepath.Join(dir, "containers"), func(id string, v *Container) error {
		if v.ID != id || v.Config == nil || v.Sandbox == "" {
			return fmt.Errorf("it is not a whole record of %s", id)
		}
		s.containers[id] = v
		return nil
	})...)
	for id, c := range s.containers {
		if s.sandboxes[c.Sandbox] == nil {
			bad = append(bad, fmt.Errorf("container %s: its sandbox %s has no record", id, c.Sandbox))
		}
	}
	return s, bad, nil
}

// voidOldBoot empties the folder when it was written before the last boot (it lies on a disk, against advice).
func (s *Store) voidOldBoot() error {
	now, err := os.ReadFile(bootFile)
	if err != nil {
		return fmt.Errorf("boot id: %w", err)
	}
	mark := filepath.Join(s.dir, "boot")
	then, err := os.ReadFile(mark)
	if err == nil && bytes.Equal(then, now) {
		return nil
	}
	for _, kind := range []string{"sandboxes", "containers"} {
		if err := os.RemoveAll(filepath.Join(s.dir, kind)); err != nil {
			return fmt.Errorf("state of an earlier boot: %w", err)
		}
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fault.New(fault.Denied, "state folder: %w", err)
	}
	return os.WriteFile(mark, now, 0o600)
}

// read decodes every record in dir; keep takes it, or says why not. The file's name is the id that it must have.
func read[T any](dir string, keep func(id string, v *T) error) (bad []error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return []error{err}
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		id, isRecord := strings.CutSuffix(e.Name(), ".json")
		if !isRecord {
			if strings.HasPrefix(e.Name(), ".new-") {
				os.Remove(path) // a write that a crash cut short; the old record is whole
			}
			continue
		}
		v := new(T)
		data, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(data, v)
		}
		if err == nil {
			err = keep(id, v)
		}
		if err != nil {
			bad = append(bad, errors.Join(fmt.Errorf("state record %s: %w", path, err), os.Rename(path, path+".bad")))
		}
	}
	return bad
}

func (s *Store) write(kind, id string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("state record %s: %w", id, err)
	}
	dir := filepath.Join(s.dir, kind)
	next := filepath.Join(dir, ".new-"+id)
	if err := os.WriteFile(next, data, 0o600); err != nil {
		os.Remove(next)
		return fault.Hint(fault.New(fault.Exhausted, "state record: %w", err), "make room on the file system of the run folder")
	}
	step.At("record of " + kind + " written")
	defer step.At("record of " + kind + " in place")
	return os.Rename(next, filepath.Join(dir, id+".json"))
}

// PutSandbox stores a new version of a sandbox; the caller holds the object's lock and never changes v again.
func (s *Store) PutSandbox(v *Sandbox) error {
	v.Version = version
	if err := s.write("sandboxes", v.ID, v); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sandboxes[v.ID] = v
	return nil
}

// PutContainer stores a new version of a container; as PutSandbox.
// Even when the file cannot be written the memory holds the new version: what we observe beats what we remember.
func (s *Store) PutContainer(v *Container) error {
	v.Version = version
	s.mu.Lock()
	s.containers[v.ID] = v
	s.mu.Unlock()
	return s.write("containers", v.ID, v)
}

// DropSandbox forgets a sandbox. Repeat: safe.
func (s *Store) DropSandbox(id string) error {
	s.mu.Lock()
	delete(s.sandboxes, id)
	s.mu.Unlock()
	defer step.At("record of sandboxes dropped")
	return gone(os.Remove(filepath.Join(s.dir, "sandboxes", id+".json")))
}

// DropContainer forgets a container. Repeat: safe.
func (s *Store) DropContainer(id string) error {
	s.mu.Lock()
	delete(s.containers, id)
	s.mu.Unlock()
	defer step.At("record of containers dropped")
	return gone(os.Remove(filepath.Join(s.dir, "containers", id+".json")))
}

func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Sandbox finds a sandbox by id or unambiguous beginning of it.
func (s *Store) Sandbox(id string) (*Sandbox, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return find("sandbox", id, s.sandboxes)
}

// Container finds a container by id or unambiguous beginning of it.
func (s *Store) Container(id string) (*Container, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return find("container", id, s.containers)
}

func find[T any](noun, id string, all map[string]*T) (*T, error) {
	if v := all[id]; v != nil {
		return v, nil
	}
	if id == "" {
		return nil, fault.New(fault.Invalid, "the request names no %s", noun)
	}
	var found *T
	for key, v := range all {
		if strings.HasPrefix(key, id) {
			if found != nil {
				return nil, fault.New(fault.Invalid, "%s id %q is the beginning of several", noun, id)
			}
			found = v
		}
	}
	if found == nil {
		return nil, fault.New(fault.NotFound, "%s %s does not exist", noun, id)
	}
	return found, nil
}

// Sandboxes returns all sandboxes in no order.
func (s *Store) Sandboxes() []*Sandbox {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]*Sandbox, 0, len(s.sandboxes))
	for _, v := range s.sandboxes {
		out = append(out, v)
	}
	return out
}

// Containers returns all containers, or those of one sandbox if sandbox is not empty, in no order.
func (s *Store) Containers(sandbox string) []*Container {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []*Container
	for _, v := range s.containers {
		if sandbox == "" || v.Sandbox == sandbox {
			out = append(out, v)
		}
	}
	return out
}
