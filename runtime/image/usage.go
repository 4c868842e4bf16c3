package image

import "slices"

// Disk is what one image takes.
type Disk struct {
	Image  `json:"image"`
	Layers int   `json:"layers"`
	Bytes  int64 `json:"bytes"`  // of all its layers on disk, estimated in blocks of 4 KiB
	Unique int64 `json:"unique"` // of these, what no other image shares
	Inodes int64 `json:"inodes"`
	Users  int   `json:"users"` // containers that stand on it
}

// Disk returns what each image takes, the largest first.
func (s *Store) Disk() []Disk {
	list := s.List()
	s.mu.Lock()
	defer s.mu.Unlock()
	shared := map[string]int{}
	for _, r := range s.t.Images {
		for _, l := range r.Layers {
			shared[l]++
		}
	}
	var out []Disk
	for _, im := range list {
		d := Disk{Image: im, Layers: len(im.Layers), Users: s.used[im.ID]}
		for _, name := range im.Layers {
			l := s.t.Layers[name]
			if l == nil {
				continue // removed since
			}
			d.Bytes += l.Disk
			d.Inodes += l.Inodes
			if shared[name] == 1 {
				d.Unique += l.Disk
			}
		}
		out = append(out, d)
	}
	slices.SortStableFunc(out, func(a, b Disk) int { return int(min(max(b.Bytes-a.Bytes, -1), 1)) })
	return out
}

// Prune removes all images that no container uses and that are not pinned. dry says to name them only.
func (s *Store) Prune(dry bool) ([]Image, error) {
	s.mu.Lock()
	var gone []Image
	for id, r := range s.t.Images {
		im := s.show(r)
		if r.Hidden || im.Pinned || s.used[id] > 0 {
			continue
		}
		gone = append(gone, im)
		if !dry {
			r.Hidden, r.Tags, r.Digests = true, nil, nil
		}
	}
	s.mu.Unlock()
	if dry || len(gone) == 0 {
		return gone, nil
	}
	return gone, s.Sweep()
}
