package image

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
)

// Use keeps the layers of the image with this id on disk, also after Remove, until as many calls of Release.
// The counts live in memory: after a start the caller repeats Use for the containers it has, then calls Sweep.
func (s *Store) Use(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used[id]++
}

// Release undoes one Use. The layers of a removed image go with its last user.
func (s *Store) Release(id string) {
	s.mu.Lock()
	s.used[id]--
	last := s.used[id] <= 0
	if last {
		delete(s.used, id)
	}
	r := s.t.Images[id]
	s.mu.Unlock()
	if last && r != nil && r.Hidden {
		if err := s.Sweep(); err != nil {
			slog.Error("layers of a removed image stay until the next start", "image", id, "err", err)
		}
	}
}

// Remove drops the image with all its tags, those of other registries included. Layers that no other image and no
// container uses leave the disk before it returns.
// Repeat: safe, an absent image is no error. Crash: the layers go when the store opens.
// Source: CRI ImageService.RemoveImage, "must return no error if the image has already been removed".
func (s *Store) Remove(ref string) error {
	s.mu.Lock()
	r := s.find(ref)
	if r != nil {
		r.Hidden, r.Tags, r.Digests = true, nil, nil
	}
	s.mu.Unlock()
	if r == nil {
		return nil
	}
	if err := s.Sweep(); err != nil {
		return fmt.Errorf("remove image %s: %w", ref, err)
	}
	return nil
}

// Sweep deletes removed images that nobody uses, and layers that nothing needs. See Use.
func (s *Store) Sweep() error {
	s.mu.Lock()
	needed := map[string]bool{}
	for id, r := range s.t.Images {
		if r.Hidden && s.used[id] == 0 {
			delete(s.t.Images, id)
			continue
		}
		if s.used[id] == 0 {
			r.Old = nil
		}
		for _, l := range slices.Concat(r.Layers, r.Old) {
			needed[l] = true
		}
	}
	var trash []string
	for name := range s.t.Layers {
		if needed[name] || s.held[name] > 0 {
			continue
		}
		// Out of the way under the lock, so that an import of the same layer finds the name free.
		to, err := s.stagingDir("gone-")
		if err == nil {
			err = os.Rename(filepath.Join(s.Base(), name), filepath.Join(to, name))
		}
		if err != nil && !os.IsNotExist(err) {
			slog.Error("layer not removed", "layer", name, "err", err)
			continue
		}
		delete(s.t.Layers, name)
		os.Remove(filepath.Join(s.sums(), name)) // if it stays, the next start removes it
		trash = append(trash, to)
	}
	s.mu.Unlock()
	err := s.save()
	for _, dir := range trash {
		if err1 := os.RemoveAll(dir); err == nil {
			err = err1
		}
	}
	return err
}

// stagingDir makes an empty directory that the next Open removes if we do not.
func (s *Store) stagingDir(prefix string) (string, error) {
	return os.MkdirTemp(s.staging(), prefix)
}
