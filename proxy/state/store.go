package state

import "slices"

// Store is what the API says now. It belongs to one goroutine. Each change returns the Services whose dataplane it
// may touch, so that a change costs what it changes and not what there is.
type Store struct {
	services map[Name]*Service
	slices   map[Name]map[Name]*Slice // by Service, then by slice
	serves   map[Name]Name            // slice → its Service

	// Two Services may claim one front for a moment (or for ever, in a broken cluster). The one whose name sorts
	// first has it, whatever the order of events, so that a restart decides the same.
	owner  map[Front]Name
	rivals map[Front][]Name // all claimants, where there are several
}

// NewStore returns an empty store.
func NewStore() *Store {
	return &Store{
		services: map[Name]*Service{}, slices: map[Name]map[Name]*Slice{}, serves: map[Name]Name{},
		owner: map[Front]Name{}, rivals: map[Front][]Name{},
	}
}

// Service returns a Service and its slices; the Service is nil if there is none.
func (s *Store) Service(name Name) (*Service, map[Name]*Slice) {
	return s.services[name], s.slices[name]
}

// Services calls each with the name of every Service, in no order.
func (s *Store) Services(each func(Name)) {
	for name := range s.services {
		each(name)
	}
}

// Len is the number of Services and of slices.
func (s *Store) Len() (services, slices int) { return len(s.services), len(s.serves) }

// Owns tells whether a Service has a front, rather than a rival of it.
func (s *Store) Owns(name Name, f Front) bool { return s.owner[f] == name }

// Contested returns the fronts that several Services claim.
func (s *Store) Contested() map[Front][]Name { return s.rivals }

// PutService adds or replaces a Service.
func (s *Store) PutService(svc *Service) []Name {
	dirty := append([]Name{svc.Name}, s.release(svc.Name)...)
	s.services[svc.Name] = svc
	svc.fronts(func(f Front) { dirty = append(dirty, s.claim(f, svc.Name)...) })
	return dirty
}

// DeleteService removes a Service; its slices stay until the API deletes them.
func (s *Store) DeleteService(name Name) []Name {
	dirty := append([]Name{name}, s.release(name)...)
	delete(s.services, name)
	return dirty
}

// PutSlice adds or replaces a slice. It may have moved to another Service.
func (s *Store) PutSlice(sl *Slice) []Name {
	dirty := []Name{sl.Service}
	if was, ok := s.serves[sl.Name]; ok && was != sl.Service {
		dirty = append(dirty, s.DeleteSlice(sl.Name)...)
	}
	of := s.slices[sl.Service]
	if of == nil {
		of = map[Name]*Slice{}
		s.slices[sl.Service] = of
	}
	of[sl.Name] = sl
	s.serves[sl.Name] = sl.Service
	return dirty
}

// DeleteSlice removes a slice; an unknown one is no change.
func (s *Store) DeleteSlice(name Name) []Name {
	svc, ok := s.serves[name]
	if !ok {
		return nil
	}
	delete(s.serves, name)
	of := s.slices[svc]
	delete(of, name)
	if len(of) == 0 {
		delete(s.slices, svc)
	}
	return []Name{svc}
}

// fronts calls each with everything the Service claims.
func (svc *Service) fronts(each func(Front)) {
	for _, p := range svc.Ports {
		for _, a := range svc.ClusterIPs {
			each(Front{a, p.Proto, p.Port})
		}
		if p.NodePort != 0 {
			each(Front{Proto: p.Proto, Port: p.NodePort})
		}
	}
}

func (s *Store) claim(f Front, name Name) (dirty []Name) {
	had, taken := s.owner[f]
	if !taken {
		s.owner[f] = name
		return nil
	}
	if had == name {
		return nil
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
	s.owner[f] = all[0]
	return []Name{had}
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
			}
			return
		}
		all = slices.DeleteFunc(all, func(n Name) bool { return n == name })
		if len(all) == 0 { // a Service that names one front twice
			delete(s.rivals, f)
			delete(s.owner, f)
			return
		}
		s.owner[f] = all[0]
		if s.rivals[f] = all; len(all) == 1 {
			delete(s.rivals, f)
		}
		dirty = append(dirty, all[0])
	})
	return dirty
}
