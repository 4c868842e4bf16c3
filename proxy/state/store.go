package state

import "slices"

// Store is what the API says now. It belongs to one goroutine. Each change returns the Services whose dataplane it
// may touch, so that a change costs what it changes and not what there is.
type Store struct {
	services map[Name]*Service
	slices   map[Name]*Slice   // by the slice's name
	serving  map[Name][]*Slice // by the Service's name, sorted by the slice's

	// Two Services may claim one front for a moment (or for ever, in a broken cluster). The one whose name sorts
	// first has it, whatever the order of events, so that a restart decides the same.
	owner  map[Front]Name
	rivals map[Front][]Name // all claimants, where there are several

	// What the kernel may still have under another name: such Services must change in one transaction.
	freed map[Front]Name
	moved map[Name]bool
}

// NewStore returns an empty store.
func NewStore() *Store {
	return &Store{
		services: map[Name]*Service{}, slices: map[Name]*Slice{}, serving: map[Name][]*Slice{},
		owner: map[Front]Name{}, rivals: map[Front][]Name{}, freed: map[Front]Name{}, moved: map[Name]bool{},
	}
}

// Service returns a Service and its slices; the Service is nil if there is none.
func (s *Store) Service(name Name) (*Service, []*Slice) { return s.services[name], s.serving[name] }

// Services calls each with the name of every Service, in no order.
func (s *Store) Services(each func(Name)) {
	for name := range s.services {
		each(name)
	}
}

// Len is the number of Services and of slices.
func (s *Store) Len() (services, slices int) { return len(s.services), len(s.slices) }

// Owns tells whether a Service has a front, rather than a rival of it.
func (s *Store) Owns(name Name, f Front) bool { return s.owner[f] == name }

// Contested returns the fronts that several Services claim, with all who do; the first of them has it.
func (s *Store) Contested() map[Front][]Name { return s.rivals }

// Moved returns the Services between which fronts have moved since the last Settle.
func (s *Store) Moved() map[Name]bool { return s.moved }

// Settle records that the kernel has all changes so far.
func (s *Store) Settle() {
	clear(s.freed)
	clear(s.moved)
}

// PutService adds or replaces a Service.
func (s *Store) PutService(svc *Service) []Name {
	if was := s.services[svc.Name]; was != nil && was.Equal(svc) {
		return nil
	}
	dirty := append([]Name{svc.Name}, s.release(svc.Name)...)
	s.services[svc.Name] = svc
	svc.fronts(func(f Front) { dirty = append(dirty, s.claim(f, svc.Name)...) })
	return dirty
}

// DeleteService removes a Service; its slices stay until the API deletes them.
func (s *Store) DeleteService(name Name) []Name {
	if s.services[name] == nil {
		return nil
	}
	dirty := append([]Name{name}, s.release(name)...)
	delete(s.services, name)
	return dirty
}

// PutSlice adds or replaces a slice. It may have moved to another Service.
func (s *Store) PutSlice(sl *Slice) []Name {
	dirty := []Name{sl.Service}
	if was := s.slices[sl.Name]; was != nil {
		if was.Equal(sl) {
			return nil
		}
		dirty = append(dirty, s.DeleteSlice(sl.Name)...)
	}
	s.slices[sl.Name] = sl
	of := s.serving[sl.Service]
	at, _ := slices.BinarySearchFunc(of, sl.Name, bySliceName)
	s.serving[sl.Service] = slices.Insert(of, at, sl)
	return dirty
}

func bySliceName(s *Slice, name Name) int { return s.Name.Compare(name) }

// DeleteSlice removes a slice; an unknown one is no change.
func (s *Store) DeleteSlice(name Name) []Name {
	was := s.slices[name]
	if was == nil {
		return nil
	}
	delete(s.slices, name)
	of := s.serving[was.Service]
	if at, found := slices.BinarySearchFunc(of, name, bySliceName); found {
		of = slices.Delete(of, at, at+1)
	}
	if s.serving[was.Service] = of; len(of) == 0 {
		delete(s.serving, was.Service)
	}
	return []Name{was.Service}
}

// fronts calls each with everything the Service claims; it may name one twice.
func (svc *Service) fronts(each func(Front)) {
	for _, p := range svc.Ports {
		for _, a := range svc.ClusterIPs {
			each(Front{a, p.Proto, p.Port})
		}
		for _, a := range svc.ExternalIPs {
			each(Front{a, p.Proto, p.Port})
		}
		for _, a := range svc.Ingress {
			each(Front{a, p.Proto, p.Port})
		}
		if p.NodePort != 0 {
			each(Front{Proto: p.Proto, Port: p.NodePort})
		}
	}
}

func (s *Store) claim(f Front, name Name) (dirty []Name) {
	if was, ok := s.freed[f]; ok && was != name {
		s.moved[was], s.moved[name] = true, true
		dirty = append(dirty, was)
	}
	had, taken := s.owner[f]
	if !taken {
		s.owner[f] = name
		return dirty
	}
	if had == name {
		return dirty
	}
	all := s.rivals[f]
	if all == nil {
		all = []Name{had}
	}
	if !slices.Contains(all, name) {
		all = append(all, name)
	}
	slices.SortFunc(all, Name.Compare)
	s.rivals[f] = all
	s.give(f, had, all[0])
	return append(dirty, all...)
}

// give makes another Service the owner of a front.
func (s *Store) give(f Front, from, to Name) {
	s.owner[f] = to
	if from != to {
		s.moved[from], s.moved[to] = true, true
	}
}

func (s *Store) release(name Name) (dirty []Name) {
	svc := s.services[name]
	if svc == nil {
		return nil
	}
	svc.fronts(func(f Front) {
		all, contested := s.rivals[f]
		if !contested {
			if s.owner[f] == name {
				delete(s.owner, f)
				if _, ok := s.freed[f]; !ok {
					s.freed[f] = name
				}
			}
			return
		}
		all = slices.DeleteFunc(all, func(n Name) bool { return n == name })
		if len(all) == 0 { // a Service that names one front twice
			delete(s.rivals, f)
			delete(s.owner, f)
			return
		}
		s.give(f, s.owner[f], all[0])
		if s.rivals[f] = all; len(all) == 1 {
			delete(s.rivals, f)
		}
		dirty = append(dirty, all[0])
	})
	return dirty
}
