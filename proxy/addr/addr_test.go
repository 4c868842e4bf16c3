package addr

import (
	"net/netip"
	"slices"
	"testing"

	"worknode/proxy/state"
)

func TestChoose(t *testing.T) {
	ips := func(list ...string) (out []netip.Addr) {
		for _, s := range list {
			out = append(out, netip.MustParseAddr(s))
		}
		return out
	}
	local := Local{Addrs: ips("10.0.0.1", "192.0.2.1", "192.0.2.9", "fd00::1"), Route: ips("192.0.2.1")}
	for _, c := range []struct {
		what   string
		local  Local
		ranges []netip.Prefix
		node   []netip.Addr
		want   []netip.Addr
	}{
		{"ranges", local, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, ips("10.0.0.1"), ips("192.0.2.1", "192.0.2.9")},
		{"a range without addresses", local, []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12")}, ips("10.0.0.1"), nil},
		{"primary, Node known", local, nil, ips("10.0.0.1"), ips("10.0.0.1")},
		{"primary, no Node yet", local, nil, nil, ips("192.0.2.1")},
		{"no uplink", Local{Addrs: local.Addrs}, nil, nil, local.Addrs},
		{"nothing at all", Local{}, nil, nil, nil},
	} {
		if got := Choose(c.local, state.NodePortAddrs{Ranges: c.ranges}, c.node); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.what, got, c.want)
		}
	}
}
