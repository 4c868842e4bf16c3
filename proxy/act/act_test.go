package act

import (
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"worknode/kernel/nft"
	"worknode/proxy/plan"
	"worknode/proxy/state"
)

// inNetns runs the test on a thread in a network namespace of its own, which dies with the thread.
func inNetns(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces and needs root")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

func ports(fam state.Family) (out []plan.Port, nodes []netip.Addr) {
	base := netip.MustParseAddr("10.96.0.0")
	if fam == state.V6 {
		base = netip.MustParseAddr("fd00:96::")
	}
	next := func() netip.Addr { base = base.Next(); return base }
	for i := range 40 {
		p := plan.Port{Key: plan.PortKey{Service: state.Name{Namespace: "ns", Name: string(rune('A' + i))}, Proto: []state.Proto{state.TCP, state.UDP, state.SCTP}[i%3]},
			ClusterIP: next(), Port: 80}
		if i%2 == 0 {
			p.NodePort = uint16(30000 + i)
		}
		for range i % 6 {
			p.Endpoints = append(p.Endpoints, netip.AddrPortFrom(next(), 8080))
		}
		if len(p.Endpoints) > 2 {
			p.Local = p.Endpoints[:1]
		}
		out = append(out, p)
	}
	return out, []netip.Addr{next(), next()}
}

// What is written is what a look finds, in both families, and nft prints it.
func TestTableIsReadBackAsWritten(t *testing.T) {
	for _, fam := range []state.Family{state.V4, state.V6} {
		inNetns(t)
		conn, err := nft.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		static := Static{Pods: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/17"), netip.MustParsePrefix("fd00:1::/64")}, MarkBit: 14}
		table := Open(conn, fam, static)
		if seen, err := table.Look(); err != nil || seen.Exists || seen.Usable {
			t.Fatalf("look at nothing: %+v, %v", seen, err)
		}
		want, nodes := ports(fam)
		d := plan.Full(nil, nil, want, nodes)
		if err := table.Replace(false, &d); err != nil {
			t.Fatal(err)
		}
		m := plan.NewModel()
		m.Commit(d)
		seen, err := table.Look()
		if err != nil || !seen.Usable {
			t.Fatalf("look: %+v, %v", seen.Why, err)
		}
		if !maps.Equal(seen.Elems, m.Elems()) || !maps.Equal(seen.Chains, m.Chains()) {
			t.Fatalf("read back %d elements %v, wrote %d %v", len(seen.Elems), seen.Chains, len(m.Elems()), m.Chains())
		}
		out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "numgen random mod 4 map @epnp") {
			t.Fatalf("nft list ruleset: %v\n%s", err, out)
		}

		// Other rules are another layout; the same table with other elements is not.
		static.MasqueradeAll = true
		if seen, err := Open(conn, fam, static).Look(); err != nil || seen.Usable || seen.Why == "" {
			t.Fatalf("other rules: %+v, %v", seen, err)
		}
		d = plan.Full(seen.Elems, seen.Chains, want[:10], nodes[:1])
		if err := table.Apply(&d); err != nil {
			t.Fatal(err)
		}
		m.Commit(d)
		if seen, err = table.Look(); err != nil || !seen.Usable || !maps.Equal(seen.Elems, m.Elems()) {
			t.Fatalf("after a change: %v, %v", seen.Why, err)
		}
		if err := table.Replace(true, &d); err == nil {
			t.Fatal("a delta that deletes cannot be the start of a new table")
		}
		if seen, err = table.Look(); err != nil || !maps.Equal(seen.Elems, m.Elems()) {
			t.Fatalf("a refused transaction changed the table: %v, %v", seen.Why, err)
		}
		for range 2 {
			if err := Remove(conn, fam); err != nil {
				t.Fatal(err)
			}
		}
	}
}
