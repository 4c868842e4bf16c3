package image

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"worknode/fault"
)

// List returns all images, oldest id first.
func (s *Store) List() []Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Image, 0, len(s.t.Images))
	for _, r := range s.t.Images {
		if !r.Hidden {
			out = append(out, s.show(r))
		}
	}
	slices.SortFunc(out, func(a, b Image) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// Get finds an image by id ("sha256:…" or its hex part), by name and tag ("web" means docker.io/library/web:latest), by
// name and digest, or by a prefix of the id's hex part that only one image has.
func (s *Store) Get(ref string) (Image, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.find(ref); r != nil {
		return s.show(r), true
	}
	return Image{}, false
}

// show is what others see of a record. The caller holds mu.
func (s *Store) show(r *record) Image {
	im := r.Image
	im.Pinned = slices.ContainsFunc(im.Tags, s.pins) || slices.ContainsFunc(im.Digests, s.pins)
	return im
}

func (s *Store) pins(name string) bool {
	return slices.ContainsFunc(s.pinned, func(pattern string) bool {
		ok, _ := path.Match(pattern, name) // Pin has checked the patterns
		return ok
	})
}

// Pin names images that are to be kept by whoever cleans up (CRI Image.pinned). A pattern is an image's name, short or
// full, or a full name with the wildcards of path.Match: registry.example/base/*.
// They take the place of those named before. Errors: Invalid names the pattern, and the old ones hold.
func (s *Store) Pin(patterns []string) error {
	var pinned []string
	for _, p := range patterns {
		if !strings.ContainsAny(p, "*?[") {
			full, err := normal(p)
			if err != nil {
				return fmt.Errorf("pinned image: %w", err)
			}
			p = full
		} else if _, err := path.Match(p, ""); err != nil {
			return fault.New(fault.Invalid, "pinned image %q: %w", p, err)
		}
		pinned = append(pinned, p)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pinned = pinned
	return nil
}

// find is Get for callers that hold mu.
func (s *Store) find(ref string) *record {
	hex := strings.TrimPrefix(ref, "sha256:")
	if r := s.t.Images["sha256:"+hex]; r != nil && !r.Hidden {
		return r
	}
	if full, err := normal(ref); err == nil {
		for _, r := range s.t.Images {
			if !r.Hidden && (slices.Contains(r.Tags, full) || slices.Contains(r.Digests, full)) {
				return r
			}
		}
	}
	if hex == "" || strings.Trim(hex, "0123456789abcdef") != "" {
		return nil
	}
	var found *record
	for id, r := range s.t.Images {
		if !r.Hidden && strings.HasPrefix(id, "sha256:"+hex) {
			if found != nil {
				return nil // ambiguous
			}
			found = r
		}
	}
	return found
}

// Tag gives the image found by ref one more name, taking it from the image that had it.
// Errors: NotFound, Invalid. Repeat: safe.
func (s *Store) Tag(ref, tag string) error {
	full, err := normal(tag)
	if err != nil {
		return err
	}
	s.mu.Lock()
	r := s.find(ref)
	if r != nil {
		s.claim(r, full)
	}
	s.mu.Unlock()
	if r == nil {
		return fault.New(fault.NotFound, "tag image %s: it is not in the store", ref)
	}
	return s.save()
}

// claim moves a tag to r. The caller holds mu. Snapshots share the old slices, so new ones are made.
func (s *Store) claim(r *record, tag string) {
	for _, other := range s.t.Images {
		if other != r && slices.Contains(other.Tags, tag) {
			other.Tags = without(other.Tags, tag)
		}
	}
	r.Tags = with(r.Tags, tag)
}

func without(list []string, s string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(e string) bool { return e == s })
}

func with(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	list = append(slices.Clone(list), s)
	slices.Sort(list)
	return list
}

// Usage is what all layers take: bytes of disk (estimated in blocks) and inodes.
func (s *Store) Usage() (bytes, inodes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.t.Layers {
		bytes += uint64(l.Disk)
		inodes += uint64(l.Inodes)
	}
	return bytes, inodes
}

func (im Image) String() string {
	if len(im.Tags) > 0 {
		return im.Tags[0]
	}
	return fmt.Sprintf("%.19s", im.ID)
}
