package plan

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"worknode/proxy/state"
)

// backends reads endpoints in short: an address's last number, then "r" ready, "s" serving, "t" terminating, "l" local,
// "@zone,zone" hints, "#node,node" hints.
func backends(t *testing.T, node, text string) (out []state.Endpoint) {
	for _, word := range strings.Fields(text) {
		var e state.Endpoint
		word, nodes, hint := strings.Cut(word, "#")
		if hint {
			e.NodeHint, e.ForThisNode = true, slices.Contains(strings.Split(nodes, ","), node)
		}
		word, zones, hint := strings.Cut(word, "@")
		if hint {
			e.Zones = state.MakeZones(strings.Split(zones, ",")...)
		}
		n := word[0] - '0'
		for _, c := range word[1:] {
			switch c {
			case 'r':
				e.Ready, e.Serving = true, true
			case 's':
				e.Serving = true
			case 't':
				e.Terminating = true
			case 'l':
				e.Local = true
			default:
				t.Fatalf("%q is no endpoint", word)
			}
		}
		e.Addr = netip.AddrFrom4([4]byte{10, 0, 0, n})
		out = append(out, e)
	}
	return out
}

func digits(list []netip.AddrPort) (out string) {
	for _, a := range list {
		out += string(a.Addr().AsSlice()[3] + '0')
	}
	return out
}

// The cases of upstream's TestCategorizeEndpoints, by their names; PreferSameNode is not to be switched off with us.
func TestCategorizeEndpoints(t *testing.T) {
	for _, c := range []struct {
		name       string
		node, zone string
		policy     string // i: internal Local, e: external Local, n: it has a node port
		in         string
		all, local string // usable by policy Cluster and Local
		none       bool   // there is no usable endpoint anywhere
	}{
		{name: "should use topology since all endpoints have hints, node has a zone label and and there are endpoints for the node's zone", zone: "zone-a", in: "3r@zone-a 4r@zone-b 5r@zone-c 6r@zone-a", all: "36"},
		{name: "externalTrafficPolicy: Local, topology ignored for Local endpoints", zone: "zone-a", policy: "en", in: "3rl@zone-a 4rl@zone-b 5r@zone-c 6r@zone-a", all: "36", local: "34"},
		{name: "internalTrafficPolicy: Local, topology ignored for Local endpoints", zone: "zone-a", policy: "in", in: "3rl@zone-a 4rl@zone-b 5r@zone-c 6r@zone-a", all: "36", local: "34"},
		{name: "empty node labels", in: "3r@zone-a", all: "3"},
		{name: "empty zone label", zone: "", in: "3r@zone-a 4r@zone-b", all: "34"},
		{name: "node in different zone, no endpoint filtering", zone: "zone-b", in: "3r@zone-a", all: "3"},
		{name: "unready endpoint", zone: "zone-a", in: "3r@zone-a 4r@zone-b 5r@zone-c 6@zone-a", all: "3"},
		{name: "only unready endpoints in same zone (should not filter)", zone: "zone-a", in: "3@zone-a 4r@zone-b 5r@zone-c 6@zone-a", all: "45"},
		{name: "missing hints, no filtering applied", zone: "zone-a", in: "3r@zone-a 4r@zone-b 5r 6r@zone-a", all: "3456"},
		{name: "multiple hints per endpoint, filtering includes any endpoint with zone included", zone: "zone-c", in: "3r@zone-a,zone-b,zone-c 4r@zone-b,zone-c 5r@zone-b,zone-d 6r@zone-c", all: "346"},
		{name: "PreferSameNode available", node: "node-1", zone: "zone-a", in: "3r@zone-a#node-1 4r@zone-b#node-2 5r@zone-c#node-3 6r@zone-a#node-4", all: "3"},
		{name: "PreferSameNode ignored if some endpoints unhinted", node: "node-1", zone: "zone-a", in: "3r@zone-a#node-1 4r 5r@zone-c#node-3 6r@zone-a#node-4", all: "3456"},
		{name: "PreferSameNode falls back to PreferSameZone if no endpoint for node", node: "node-0", zone: "zone-a", in: "3r@zone-a#node-1 4r@zone-b#node-2 5r@zone-c#node-3 6r@zone-a#node-4", all: "36"},
		{name: "conflicting topology and localness require merging allEndpoints", zone: "zone-a", policy: "en", in: "0rl@zone-a 1rl@zone-b 2r@zone-a 3r@zone-b", all: "02", local: "01"},
		{name: "internalTrafficPolicy: Local, with empty endpoints", policy: "i", none: true},
		{name: "internalTrafficPolicy: Local, but all endpoints are remote", policy: "i", in: "0r 1r"},
		{name: "internalTrafficPolicy: Local, all endpoints are local", policy: "i", in: "0rl 1rl", local: "01"},
		{name: "internalTrafficPolicy: Local, some endpoints are local", policy: "i", in: "0rl 1r", local: "0"},
		{name: "Cluster traffic policy, endpoints not Ready", in: "0 1", none: true},
		{name: "Cluster traffic policy, some endpoints are Ready", in: "0 1r", all: "1"},
		{name: "Cluster traffic policy, all endpoints are terminating", in: "0stl 1st", all: "01"},
		{name: "iTP: Local, eTP: Cluster, some endpoints local", policy: "in", in: "0rl 1r", all: "01", local: "0"},
		{name: "iTP: Cluster, eTP: Local, some endpoints local", policy: "en", in: "0rl 1r", all: "01", local: "0"},
		{name: "iTP: Local, eTP: Local, some endpoints local", policy: "ien", in: "0rl 1r", all: "01", local: "0"},
		{name: "iTP: Local, eTP: Local, all endpoints remote", policy: "ien", in: "0r 1r", all: "01"},
		{name: "iTP: Local, eTP: Local, all endpoints remote and terminating", policy: "ien", in: "0st 1st", all: "01"},
		{name: "iTP: Cluster, eTP: Local, with terminating endpoints", policy: "en", in: "0r 1l 2stl 3st", all: "0", local: "2"},
		{name: "externalTrafficPolicy ignored if not externally accessible", policy: "e", in: "0r 1rl", all: "01"},
		{name: "no cluster endpoints for iTP:Local internal-only service", policy: "i", in: "0r 1rl", local: "1"},
		{name: "empty endpoints when no service endpoints exist", none: true},
		{name: "single endpoint not ready, not serving, not terminating", zone: "zone-a", in: "0", none: true},
		// Not upstream's.
		{name: "a hint for the zone of a terminating endpoint does not count", zone: "zone-a", in: "0st@zone-a 1r@zone-b 2r@zone-c", all: "12"},
		{name: "a zone's name inside of another", zone: "one", in: "0r@zone-one 1r@one", all: "1"},
		{name: "ready although terminating (publishNotReadyAddresses)", in: "0rt 1r", all: "01"},
	} {
		node := c.node
		if node == "" {
			node = "n"
		}
		name := state.Name{Namespace: "ns", Name: "web"}
		port := state.ServicePort{Name: "http", Proto: state.TCP, Port: 80}
		if strings.Contains(c.policy, "n") {
			port.NodePort = 8080
		}
		svc := &state.Service{Name: name, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, Ports: []state.ServicePort{port},
			InternalLocal: strings.Contains(c.policy, "i"), ExternalLocal: strings.Contains(c.policy, "e")}
		sl := []*state.Slice{{Service: name, Ports: []state.SlicePort{{Name: "http", Proto: state.TCP, Port: 80}}, Endpoints: backends(t, node, c.in)}}
		got := Compile(Input{svc, sl, func(state.Front) bool { return true }}, state.V4, Here{Node: node, Zone: c.zone})
		if len(got) != 1 {
			t.Fatalf("%s: %d ports", c.name, len(got))
		}
		if p := got[0]; digits(p.All) != c.all || digits(p.Local) != c.local || p.Any == c.none {
			t.Errorf("%s: all %q, local %q, any %v; want %q, %q, %v", c.name, digits(p.All), digits(p.Local), p.Any, c.all, c.local, !c.none)
		}
	}
}

// The joins of upstream's endpointslicecache tests.
func TestJoin(t *testing.T) {
	name := state.Name{Namespace: "ns", Name: "web"}
	svc := &state.Service{Name: name, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, Ports: []state.ServicePort{{Name: "http", Proto: state.TCP, Port: 80}}}
	slice := func(port string, proto state.Proto, n uint16, in string) *state.Slice {
		return &state.Slice{Service: name, Ports: []state.SlicePort{{Name: port, Proto: proto, Port: n}}, Endpoints: backends(t, "n", in)}
	}
	for _, c := range []struct {
		name string
		in   []*state.Slice
		want string
	}{
		{"simple, one slice", []*state.Slice{slice("http", state.TCP, 80, "1r 2r 3")}, "[10.0.0.1:80 10.0.0.2:80]"},
		{"two slices, same port", []*state.Slice{slice("http", state.TCP, 80, "3r"), slice("http", state.TCP, 80, "1r")}, "[10.0.0.1:80 10.0.0.3:80]"},
		{"two slices, different port numbers", []*state.Slice{slice("http", state.TCP, 80, "1r"), slice("http", state.TCP, 8080, "1r 2r")}, "[10.0.0.1:80 10.0.0.1:8080 10.0.0.2:8080]"},
		{"overlapping", []*state.Slice{slice("http", state.TCP, 80, "1r 2r"), slice("http", state.TCP, 80, "2r 3r")}, "[10.0.0.1:80 10.0.0.2:80 10.0.0.3:80]"},
		{"another port name", []*state.Slice{slice("admin", state.TCP, 80, "1r")}, "[]"},
		{"another protocol", []*state.Slice{slice("http", state.UDP, 80, "1r")}, "[]"},
		{"an address twice, one terminating, whatever the order", []*state.Slice{slice("http", state.TCP, 80, "1st"), slice("http", state.TCP, 80, "1r")}, "[10.0.0.1:80]"},
		{"an address twice, the other way round", []*state.Slice{slice("http", state.TCP, 80, "1r"), slice("http", state.TCP, 80, "1st")}, "[10.0.0.1:80]"},
		{"no slices", nil, "[]"},
	} {
		got := Compile(Input{svc, c.in, func(state.Front) bool { return true }}, state.V4, Here{Node: "n"})
		if text := "[" + strings.Trim(strings.Join(strings.Fields(strings.Trim(printPorts(got[0].All), "[]")), " "), " ") + "]"; text != c.want {
			t.Errorf("%s: %s, want %s", c.name, text, c.want)
		}
	}
	if Compile(Input{svc, nil, func(state.Front) bool { return true }}, state.V6, Here{}) != nil {
		t.Error("an IPv4 Service has IPv6 ports")
	}
}

func printPorts(list []netip.AddrPort) (out string) {
	for _, a := range list {
		out += a.String() + " "
	}
	return out
}

// Source ranges, as upstream's LoadBalancer tables have them.
func TestSourceRanges(t *testing.T) {
	prefixes := func(list ...string) (out []netip.Prefix) {
		for _, s := range list {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	for _, c := range []struct {
		what    string
		sources []netip.Prefix
		want    []netip.Prefix
		guarded int
	}{
		{"none", nil, nil, 0},
		{"of the other family only", prefixes("fd00::/64"), nil, 0},
		{"everybody", prefixes("203.0.113.0/24", "0.0.0.0/0"), nil, 0},
		{"one", prefixes("203.0.113.0/25"), prefixes("203.0.113.0/25"), 1},
		{"one inside another, and unmasked", prefixes("203.0.113.7/25", "203.0.113.0/28", "203.0.113.0/25"), prefixes("203.0.113.0/25"), 1},
		{"with the node in it the address itself may", prefixes("192.0.2.0/24"), prefixes("1.2.3.4/32", "192.0.2.0/24"), 1},
	} {
		svc := &state.Service{Name: state.Name{Name: "a"}, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, Sources: c.sources,
			Ingress: []netip.Addr{netip.MustParseAddr("1.2.3.4"), netip.MustParseAddr("fd00::9")}, Ports: []state.ServicePort{{Proto: state.TCP, Port: 80}}}
		got := Compile(Input{svc, nil, func(state.Front) bool { return true }}, state.V4, Here{IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})[0]
		if !slices.Equal(got.Allow, c.want) || len(got.Guarded) != c.guarded || len(got.External) != 1 {
			t.Errorf("%s: allow %v, guarded %v, external %v", c.what, got.Allow, got.Guarded, got.External)
		}
	}
}

// ReadyHere is what a health check answers: addresses, not endpoints, and ready ones only.
func TestReadyHereCountsAddresses(t *testing.T) {
	svc := &state.Service{ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
		Ports: []state.ServicePort{{Name: "a", Proto: state.TCP, Port: 80}, {Name: "b", Proto: state.TCP, Port: 81}}}
	sl := []*state.Slice{{Ports: []state.SlicePort{{Name: "a", Proto: state.TCP, Port: 80}, {Name: "b", Proto: state.TCP, Port: 81}},
		Endpoints: backends(t, "n", "1rl 2rl 3r 4stl 5l")}}
	if n := ReadyHere(Input{Service: svc, Slices: sl}); n != 2 {
		t.Errorf("%d, want 2", n)
	}
	if n := ReadyHere(Input{}); n != 0 {
		t.Errorf("no Service: %d", n)
	}
}
