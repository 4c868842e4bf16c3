package act

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/nft"
	"worknode/proxy/plan"
	"worknode/proxy/state"
)

// inNetns runs the test on a thread in a network namespace of its own, which dies with the thread.
func inNetns(t testing.TB) *nft.Conn {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces and needs root")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	conn, err := nft.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

var families = []state.Family{state.V4, state.V6}

// cluster is a random one, with the models of what the kernel has of it.
type cluster struct {
	t      testing.TB
	r      *rand.Rand
	store  *state.Store
	tables *Tables
	conn   *nft.Conn
	want   [2]plan.Want
	model  [2]*plan.Model
}

func newCluster(t testing.TB, seed uint64) *cluster {
	conn := inNetns(t)
	c := &cluster{t: t, r: rand.New(rand.NewPCG(seed, 2)), store: state.NewStore(), tables: Open(conn, false), conn: conn}
	s := state.DefaultSettings("n")
	s.LocalPods = []state.LocalPods{{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/17"), netip.MustParsePrefix("fd01::/64")}},
		{By: state.ByBridge, Device: "cni0"}, {By: state.ByInterfacePrefix, Device: "veth"}}
	s.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd96::/108")}
	s.DropInvalid = true
	for i, fam := range families {
		c.want[i].Rules = plan.RulesOf(&s, &state.Node{}, nil, fam)
		c.model[i] = plan.NewModel()
	}
	return c
}

func (c *cluster) addr(fam state.Family, net byte, n int) netip.Addr {
	if i := c.r.IntN(n); fam == state.V6 {
		return netip.AddrFrom16([16]byte{0xfd, net, 14: byte(i >> 8), 15: byte(i)})
	} else {
		return netip.AddrFrom4([4]byte{10, net, byte(i >> 8), byte(i)})
	}
}

// put adds or changes a Service with its slices, of both families, and returns whom that touches.
func (c *cluster) put(i int) []state.Name {
	r := c.r
	once := func(n int) bool { return r.IntN(n) == 0 }
	svc := &state.Service{Name: state.Name{Namespace: "ns", Name: fmt.Sprint("s", i)}}
	protos := []state.Proto{state.TCP, state.UDP, state.SCTP}
	for p := range 1 + r.IntN(3) {
		sp := state.ServicePort{Name: fmt.Sprint("p", p), Proto: protos[r.IntN(3)], Port: uint16(80 + p)}
		if once(2) {
			sp.NodePort = uint16(30000 + r.IntN(200))
		}
		svc.Ports = append(svc.Ports, sp)
	}
	svc.InternalLocal, svc.ExternalLocal = once(4), once(3)
	if once(3) {
		svc.Sticky = time.Hour
	}
	dirty := []state.Name{svc.Name}
	for _, fam := range families {
		svc.ClusterIPs = append(svc.ClusterIPs, c.addr(fam, 96, 500))
		if once(3) {
			svc.Ingress = append(svc.Ingress, c.addr(fam, 203, 20))
			for range r.IntN(3) {
				a := c.addr(fam, 7, 1000)
				p, _ := a.Prefix(a.BitLen() - r.IntN(10))
				svc.Sources = append(svc.Sources, p)
			}
		}
		sl := &state.Slice{Name: state.Name{Namespace: "ns", Name: fmt.Sprint("s", i, "-", fam)}, Service: svc.Name}
		for _, p := range svc.Ports {
			sl.Ports = append(sl.Ports, state.SlicePort{Name: p.Name, Proto: p.Proto, Port: 8080})
		}
		for range r.IntN(6) {
			sl.Endpoints = append(sl.Endpoints, state.Endpoint{Addr: c.addr(fam, 1, 300), Ready: !once(5), Serving: true, Terminating: once(5), Local: once(2)})
		}
		dirty = append(dirty, c.store.PutSlice(sl)...)
	}
	return append(dirty, c.store.PutService(svc)...)
}

func (c *cluster) compile(fam state.Family, names []state.Name) (out []plan.Changed) {
	for _, n := range names {
		svc, sl := c.store.Service(n)
		out = append(out, plan.Changed{Service: n, Ports: plan.Compile(plan.Input{Service: svc, Slices: sl,
			Owns: func(f state.Front) bool { return c.store.Owns(n, f) }}, fam, plan.Here{Node: "n"})})
	}
	return out
}

func (c *cluster) all() (names []state.Name) {
	c.store.Services(func(n state.Name) { names = append(names, n) })
	return names
}

// full looks at both tables and returns what has to happen.
func (c *cluster) full() (changes []Change) {
	c.t.Helper()
	for i, fam := range families {
		seen, err := c.tables.Look(fam, c.want[i].Rules.Known())
		if err != nil {
			c.t.Fatal(err)
		}
		if !seen.Usable {
			seen.Have = plan.Have{}
		}
		d := plan.Full(seen.Have, c.compile(fam, c.all()), c.want[i])
		changes = append(changes, Change{Family: fam, Delta: &d, Make: !seen.Usable, Exists: seen.Exists})
	}
	return changes
}

// diff returns what has to happen for the dirty.
func (c *cluster) diff(dirty []state.Name) (changes []Change) {
	slices.SortFunc(dirty, state.Name.Compare)
	dirty = slices.Compact(dirty)
	for i, fam := range families {
		d := c.model[i].Diff(c.compile(fam, dirty), c.want[i])
		changes = append(changes, Change{Family: fam, Delta: &d})
	}
	return changes
}

func (c *cluster) apply(changes []Change) {
	c.t.Helper()
	if _, err := c.tables.Apply(changes...); err != nil {
		c.t.Fatal(err)
	}
	for i := range changes {
		c.model[i].Commit(changes[i].Delta)
		if err := c.tables.Sweep(changes[i].Family, changes[i].Delta.Sweep); err != nil {
			c.t.Fatal(err)
		}
	}
	c.store.Settle()
}

// check compares what the kernel has with the models.
func (c *cluster) check(what string) {
	c.t.Helper()
	for i, fam := range families {
		seen, err := c.tables.Look(fam, c.want[i].Rules.Known())
		if err != nil || !seen.Usable {
			c.t.Fatalf("%s, family %d: look: %v, %v", what, fam, seen.Why, err)
		}
		if want := c.model[i].Elems(); !maps.Equal(seen.Elems, want) {
			for k, v := range want {
				if seen.Elems[k] != v {
					c.t.Errorf("%s: want %v, have %v", what, plan.Elem{Key: k, Value: v}, seen.Elems[k])
				}
			}
			c.t.Fatalf("%s, family %d: %d elements in the kernel, %d in the model", what, fam, len(seen.Elems), len(want))
		}
		want := c.model[i].Chains()
		for name, h := range want {
			if h == 0 {
				want[name] = plan.EmptyHash()
			}
		}
		if !maps.Equal(seen.Chains, want) {
			c.t.Fatalf("%s, family %d: chains in the kernel %v, in the model %v", what, fam, seen.Chains, want)
		}
	}
}

// list has nft print all, which must not crash it.
func (c *cluster) list() string {
	c.t.Helper()
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		c.t.Fatalf("nft list ruleset: %v\n%.2000s", err, out)
	}
	return string(out)
}

// Random changes in both families: after each transaction the kernel has what the models say, and now and then a fresh
// compile finds nothing to do.
func TestKernelFollowsRandomChanges(t *testing.T) {
	c := newCluster(t, 1)
	for i := range 40 {
		c.put(i)
	}
	c.apply(c.full())
	c.check("first load")
	out := c.list()
	for _, part := range []string{"numgen random mod 3 map @epnp", "ip6 daddr . meta l4proto . th dport . ip6 saddr != @fw-ok drop", "masquerade fully-random", `iifname "veth*"`} {
		if !strings.Contains(out, part) {
			t.Errorf("nft does not list %q", part)
		}
	}
	for step := range 60 {
		var dirty []state.Name
		for range 1 + c.r.IntN(4) {
			if c.r.IntN(6) == 0 {
				dirty = append(dirty, c.store.DeleteService(state.Name{Namespace: "ns", Name: fmt.Sprint("s", c.r.IntN(40))})...)
			} else {
				dirty = append(dirty, c.put(c.r.IntN(40))...)
			}
		}
		if step%10 == 5 {
			c.want[0].Rules.MasqueradeAll = !c.want[0].Rules.MasqueradeAll
			c.want[1].NodeIPs = []netip.Addr{c.addr(state.V6, 9, 100)}
		}
		c.apply(c.diff(dirty))
		if step%5 == 0 {
			c.check(fmt.Sprint("step ", step))
			for i, change := range c.full() {
				if d := change.Delta; d.Size() > 0 || len(d.Chains) > 0 || len(d.Maps) > 0 {
					t.Fatalf("step %d, family %d: a fresh compile would change %s", step, families[i], d.First())
				}
			}
		}
	}
	c.list()
}

// A batch that the kernel refuses at any of its operations leaves both families as they were, and the same batch without
// the fault goes through afterwards.
func TestAbortAtEveryOperation(t *testing.T) {
	c := newCluster(t, 3)
	for i := range 12 {
		c.put(i)
	}
	c.apply(c.full())
	var dirty []state.Name
	for i := range 12 {
		dirty = append(dirty, c.put(i)...)
	}
	dirty = append(dirty, c.store.DeleteService(state.Name{Namespace: "ns", Name: "s3"})...)
	n := c.tables.Batch(c.diff(dirty)...).Len()
	if n < 20 {
		t.Fatalf("only %d operations", n)
	}
	for at := range n + 1 {
		b := c.tables.Batch(c.diff(dirty)...)
		b.Spoil(at)
		if err := c.conn.Commit(b); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "spoil") {
			t.Fatalf("operation %d of %d spoilt: %v", at, n, err)
		}
		if at%8 == 0 {
			c.check(fmt.Sprintf("operation %d of %d spoilt", at, n))
		}
	}
	c.apply(c.diff(dirty))
	c.check("after all aborts")
}

// Whoever changes a table, a look finds it, and what is not ours at all has the table made anew.
func TestLookFindsWhatOthersDid(t *testing.T) {
	c := newCluster(t, 5)
	c.tables = Open(c.conn, true)
	for i := range 10 {
		c.put(i)
	}
	c.apply(c.full())
	c.check("first load")
	nftables := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("nft", args...).CombinedOutput(); err != nil {
			t.Fatalf("nft %v: %v %s", args, err, out)
		}
	}
	for _, harm := range []struct {
		what   string
		remade bool
		cmd    []string
	}{
		{"an element removed", false, []string{"flush", "map", "ip", TableName, "ep"}},
		{"an element added", false, []string{"add", "element", "ip6", TableName, "cluster-ips", "{ 2001:db8::7 }"}},
		{"a rule added", false, []string{"add", "rule", "ip", TableName, "services", "counter"}},
		{"a chain emptied", false, []string{"flush", "chain", "ip", TableName, "filter-forward"}},
		{"a foreign chain", true, []string{"add", "chain", "ip", TableName, "mine"}},
		{"a foreign element", true, []string{"add", "element", "ip6", TableName, "noep", "{ 2001:db8::7 . tcp . 80 : accept }"}},
		{"a table deleted", true, []string{"delete", "table", "ip6", TableName}},
		{"all flushed", true, []string{"flush", "ruleset"}},
	} {
		nftables(harm.cmd...)
		changes := c.full()
		if remade := changes[0].Make || changes[1].Make; remade != harm.remade {
			t.Errorf("%s: made anew: %v", harm.what, remade)
		}
		if changes[0].Delta.Empty() && changes[1].Delta.Empty() {
			t.Errorf("%s: not found", harm.what)
		}
		c.apply(changes)
		c.check(harm.what)
	}
	for range 2 {
		for _, fam := range families {
			if _, err := Remove(c.conn, fam, TableName); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Clients whose endpoint is gone are forgotten, the others are not.
func TestSweepForgetsClientsOfGoneEndpoints(t *testing.T) {
	for _, fam := range families {
		c := newCluster(t, 7)
		l := newLayout(fam)
		a, b := netip.AddrPortFrom(c.addr(fam, 1, 1), 80), netip.AddrPortFrom(c.addr(fam, 1, 1), 81)
		batch := nft.NewBatch(l.fam, TableName)
		batch.AddTable(0, comment)
		batch.AddSet(l.clients("aff-x"))
		var elems []nft.Elem
		for i := range 3000 {
			to := []netip.AddrPort{a, b}[i%2]
			client := netip.AddrFrom4([4]byte{9, 9, byte(i >> 8), byte(i)})
			if fam == state.V6 {
				client = netip.AddrFrom16([16]byte{0x20, 1, 14: byte(i >> 8), 15: byte(i)})
			}
			elems = append(elems, nft.Elem{Key: appendAddr(nil, client), Data: appendTo(nil, to)})
		}
		batch.AddElems("aff-x", elems)
		if err := c.conn.Commit(batch); err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			live []netip.AddrPort
			left int
		}{{[]netip.AddrPort{a, b}, 3000}, {[]netip.AddrPort{b}, 1500}, {nil, 0}} {
			if err := c.tables.Sweep(fam, []plan.Sweep{{Map: "aff-x", Live: step.live}, {Map: "aff-gone"}}); err != nil {
				t.Fatal(err)
			}
			n := 0
			if err := c.conn.Elems(l.fam, TableName, "aff-x", func() { n = 0 }, func(nft.Elem) { n++ }); err != nil || n != step.left {
				t.Fatalf("%d clients left, want %d; %v", n, step.left, err)
			}
		}
	}
}

// A refusal that is not the kernel's word on our rules must reach the caller with its kind.
func TestApplyTellsBusyFromDenied(t *testing.T) {
	c := newCluster(t, 8)
	c.put(1)
	for _, want := range []error{unix.EBUSY, unix.EINTR, unix.ENOBUFS} {
		c.conn.Fail = func(*nft.Batch) error { return want }
		if _, err := c.tables.Apply(c.full()...); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	c.conn.Fail = nil
	c.apply(c.full())
	c.check("after the refusals")
}
