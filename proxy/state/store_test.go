package state

import (
	"net/netip"
	"slices"
	"testing"
)

func svc(name, ip string, nodePort uint16) *Service {
	return &Service{Name: Name{"ns", name}, ClusterIPs: []netip.Addr{netip.MustParseAddr(ip)},
		Ports: []ServicePort{{Proto: TCP, Port: 80, NodePort: nodePort}}}
}

// Two Services that claim one front: the first by name has it, whatever the order; it goes on when the owner leaves.
func TestContestedFrontHasOneOwnerWhateverTheOrder(t *testing.T) {
	front := Front{netip.MustParseAddr("10.96.0.1"), TCP, 80}
	a, b := Name{"ns", "a"}, Name{"ns", "b"}
	for _, order := range [][]string{{"a", "b"}, {"b", "a"}} {
		s := NewStore()
		s.PutService(svc(order[0], "10.96.0.1", 0))
		dirty := s.PutService(svc(order[1], "10.96.0.1", 0))
		if !slices.Contains(dirty, a) || !slices.Contains(dirty, b) {
			t.Errorf("%v: both must be compiled again, got %v", order, dirty)
		}
		if !s.Owns(a, front) || s.Owns(b, front) || len(s.Contested()) != 1 {
			t.Errorf("%v: a owns it: %v, b: %v", order, s.Owns(a, front), s.Owns(b, front))
		}
		if dirty := s.DeleteService(a); !slices.Contains(dirty, b) {
			t.Errorf("%v: the heir is not compiled again: %v", order, dirty)
		}
		if !s.Owns(b, front) || len(s.Contested()) != 0 {
			t.Errorf("%v: b did not inherit", order)
		}
		s.DeleteService(b)
		if len(s.owner) != 0 || len(s.rivals) != 0 {
			t.Errorf("%v: left behind: %v %v", order, s.owner, s.rivals)
		}
	}
}

func TestSliceMovesBetweenServicesAndLeavesNothing(t *testing.T) {
	s := NewStore()
	slice := func(of string) *Slice { return &Slice{Name: Name{"ns", "x"}, Service: Name{"ns", of}} }
	s.PutSlice(slice("a"))
	dirty := s.PutSlice(slice("b"))
	if len(dirty) != 2 {
		t.Errorf("both Services change, got %v", dirty)
	}
	if _, sl := s.Service(Name{"ns", "a"}); len(sl) != 0 {
		t.Errorf("a still has %v", sl)
	}
	if _, sl := s.Service(Name{"ns", "b"}); len(sl) != 1 {
		t.Errorf("b has %v", sl)
	}
	if got := s.DeleteSlice(Name{"ns", "x"}); !slices.Equal(got, []Name{{"ns", "b"}}) {
		t.Errorf("dirty after delete: %v", got)
	}
	if s.DeleteSlice(Name{"ns", "x"}) != nil {
		t.Error("an unknown slice changes nothing")
	}
	if len(s.slices) != 0 || len(s.serving) != 0 {
		t.Errorf("left behind: %v %v", s.slices, s.serving)
	}
}
