package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/nft"
	"worknode/proxy/act"
	"worknode/proxy/addr"
	"worknode/proxy/api"
	"worknode/proxy/plan"
	"worknode/proxy/state"
)

// rig is a loop in a network namespace of its own, with the tests as its API.
type rig struct {
	t       testing.TB
	conn    *nft.Conn
	loop    *loop
	commits chan state.Commit
	done    chan struct{}
	stop    context.CancelFunc

	mu       sync.Mutex
	failures []error
	troubles []state.Trouble
	health   []state.HealthPort
	nodeIPs  []netip.Addr
}

func newRig(t testing.TB, change func(*state.Settings), shared bool) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces and needs root")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t}
	r.start(change, shared)
	t.Cleanup(r.end)
	return r
}

// start runs a loop in the namespace of the calling thread, as a process that starts.
func (r *rig) start(change func(*state.Settings), shared bool) {
	r.t.Helper()
	var err error
	if r.conn, err = nft.Open(); err != nil {
		r.t.Fatal(err)
	}
	s := state.DefaultSettings("n")
	if change != nil {
		change(&s)
	}
	r.commits, r.done = make(chan state.Commit, 1000), make(chan struct{})
	locked := func(fn func()) { r.mu.Lock(); defer r.mu.Unlock(); fn() }
	r.loop = newLoop(s, state.Hooks{
		Committed:     func(c state.Commit) { r.commits <- c },
		Failed:        func(err error) { locked(func() { r.failures = append(r.failures, err) }) },
		Trouble:       func(t state.Trouble) { locked(func() { r.troubles = append(r.troubles, t) }) },
		Health:        func(h []state.HealthPort) { locked(func() { r.health = h }) },
		NodePortAddrs: func(a []netip.Addr) { locked(func() { r.nodeIPs = a }) },
	}, act.Open(r.conn, shared))
	if err := r.loop.claim(); err != nil {
		r.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() { defer close(r.done); r.loop.run(ctx) }()
	r.loop.local <- addr.Local{Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
}

func (r *rig) end() {
	r.stop()
	<-r.done
	r.conn.Close()
}

func (r *rig) send(events ...api.Event) {
	for _, e := range events {
		e.Seen = time.Now()
		r.loop.events <- e
	}
}

// commit waits for the next commit that says it is it.
func (r *rig) commit(what string, is func(state.Commit) bool) state.Commit {
	r.t.Helper()
	late := time.After(20 * time.Second)
	for {
		select {
		case c := <-r.commits:
			if is == nil || is(c) {
				return c
			}
		case <-late:
			r.mu.Lock()
			defer r.mu.Unlock()
			r.t.Fatalf("no commit: %s; failures %v", what, r.failures)
		}
	}
}

// seen runs fn on the actor, with what has been reported so far.
func (r *rig) seen(fn func()) {
	r.t.Helper()
	if err := r.loop.ask(r.t.Context(), func() { r.mu.Lock(); defer r.mu.Unlock(); fn() }); err != nil {
		r.t.Fatal(err)
	}
}

// inKernel has a second pair of eyes look whether the kernel has exactly what a fresh compile wants.
func (r *rig) inKernel() {
	r.t.Helper()
	// A dump misses elements while the kernel resizes a set, and on a busy machine it is at it for a while.
	lacks := ""
	for range 50 {
		r.seen(func() { lacks = r.lacks() })
		if lacks == "" {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	r.t.Error(lacks)
}

// lacks says what the kernel has not of what a fresh compile wants, or has beyond it.
func (r *rig) lacks() string {
	for _, f := range r.loop.families {
		seen, err := r.loop.tables.Look(f.fam, r.loop.want(f.fam).Rules.Known())
		if err != nil || !seen.Usable {
			return fmt.Sprintf("look: %v %v", seen.Why, err)
		}
		d := plan.Full(seen.Have, r.loop.compileAll(f.fam, nil), r.loop.want(f.fam))
		if d.Size() > 0 || len(d.Chains) > 0 {
			return fmt.Sprintf("family %d: the kernel lacks %s and %d more, %d chains", f.fam, d.First(), d.Size(), len(d.Chains))
		}
	}
	return ""
}

func name(i int) state.Name { return state.Name{Namespace: "ns", Name: fmt.Sprintf("svc-%05d", i)} }

func vip(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 96 + byte(i>>16), byte(i >> 8), byte(i)})
}

func service(i int, change ...func(*state.Service)) api.Event {
	s := &state.Service{Name: name(i), ClusterIPs: []netip.Addr{vip(i)}, Ports: []state.ServicePort{{Name: "http", Proto: state.TCP, Port: 80}}}
	for _, c := range change {
		c(s)
	}
	return api.Event{PutService: s}
}

// slice has n endpoints of a Service; the last one differs by turn.
func slice(i, n, turn int) api.Event {
	s := &state.Slice{Name: name(i), Service: name(i), Ports: []state.SlicePort{{Name: "http", Proto: state.TCP, Port: 8080}}}
	for j := range n {
		a := [4]byte{10, byte(j), byte(i >> 8), byte(i)}
		if j == n-1 {
			a = [4]byte{10, 200 + byte(turn>>16), byte(turn >> 8), byte(turn)}
		}
		s.Endpoints = append(s.Endpoints, state.Endpoint{Addr: netip.AddrFrom4(a), Ready: true, Serving: true, Local: j == 0})
	}
	return api.Event{PutSlice: s}
}

var synced = api.Event{Synced: true}

func TestFirstLoadIsOneTransactionOfBothFamilies(t *testing.T) {
	r := newRig(t, nil, false)
	for i := range 200 {
		r.send(service(i), slice(i, 3, i))
	}
	r.send(synced)
	c := r.commit("first load", nil)
	if !c.Full || c.Transactions != 1 || c.Replaced != 2 || c.AllServices != 200 || c.AllEndpoints != 600 {
		t.Errorf("%+v", c)
	}
	r.inKernel()
	// A change costs what it changes.
	r.send(slice(7, 3, 5000))
	if c := r.commit("one endpoint", nil); c.Full || c.Elements != 1 || c.Transactions != 1 {
		t.Errorf("%+v", c)
	}
	// A change of nothing costs nothing.
	r.send(slice(7, 3, 5000), service(7), slice(8, 3, 5001))
	if c := r.commit("a change of nothing", nil); c.Services != 1 || c.Elements != 1 {
		t.Errorf("%+v", c)
	}
	// A restart finds all of it.
	r.end()
	r.start(nil, false)
	for i := range 200 {
		r.send(service(i), slice(i, 3, i))
	}
	r.send(slice(7, 3, 5000), slice(8, 3, 5001), synced)
	if c := r.commit("restart", nil); !c.Full || c.Transactions != 0 || c.Replaced != 0 {
		t.Errorf("a restart: %+v", c)
	}
	r.inKernel()
}

// After the first load no transaction is long, and fronts that move go in one.
func TestManyChangesAreManyTransactions(t *testing.T) {
	const n = 2000
	r := newRig(t, nil, false)
	for i := range n {
		r.send(service(i), slice(i, 3, i))
	}
	r.send(synced)
	r.commit("first load", nil)
	var most int
	conn := r.conn
	r.seen(func() {
		conn.Fail = func(b *nft.Batch) error { most = max(most, b.Bytes()); return nil }
		// All at once, and every address moves to the next Service.
		for i := range n {
			for _, e := range []api.Event{service(i, func(s *state.Service) { s.ClusterIPs[0] = vip((i + 1) % n) }), slice(i, 4, i)} {
				if e.PutService != nil {
					for _, name := range r.loop.store.PutService(e.PutService) {
						r.loop.dirty[name] = true
					}
				} else {
					for _, name := range r.loop.store.PutSlice(e.PutSlice) {
						r.loop.dirty[name] = true
					}
				}
			}
		}
	})
	r.send(slice(0, 5, 1))
	r.commit("all moved", nil)
	r.inKernel()
	r.seen(func() {
		most = 0
		for i := range n {
			for _, name := range r.loop.store.PutSlice(slice(i, 4, 10000+i).PutSlice) {
				r.loop.dirty[name] = true
			}
		}
	})
	r.send(slice(0, 5, 2))
	r.commit("all endpoints changed", nil)
	r.inKernel()
	r.seen(func() {
		if most == 0 || most > 400<<10 {
			t.Errorf("the longest transaction had %d bytes", most)
		}
		if len(r.failures) > 0 {
			t.Error(r.failures)
		}
	})
}

// A refused transaction leaves the old rules, and the next one is made from a look at the kernel.
func TestRefusedTransactionIsRepeated(t *testing.T) {
	for _, errno := range []error{unix.EBUSY, unix.EINTR, unix.ENOBUFS, unix.ENOMEM, unix.EEXIST} {
		r := newRig(t, nil, false)
		r.send(service(1), slice(1, 3, 1), synced)
		r.commit("first load", nil)
		left := 3
		r.seen(func() {
			r.conn.Fail = func(*nft.Batch) error {
				if left--; left >= 0 {
					return fault.As(fault.Temporary, fmt.Errorf("in the kernel's place: %w", errno))
				}
				return nil
			}
		})
		r.send(slice(1, 3, 2))
		if c := r.commit("after refusals", nil); !c.Full || c.Elements != 1 {
			t.Errorf("%v: %+v", errno, c)
		}
		r.inKernel()
		r.seen(func() {
			if len(r.failures) != 3 || !errors.Is(r.failures[0], errno) {
				t.Errorf("%v: failures %v", errno, r.failures)
			}
		})
		r.end()
		r.start(nil, false) // for the clean-up
	}
}

// One Service that the kernel does not take is named, and does not stop the others; once it is changed it is tried again.
func TestOneBadServiceDoesNotStopTheOthers(t *testing.T) {
	r := newRig(t, nil, false)
	for i := range 50 {
		r.send(service(i), slice(i, 2, i))
	}
	r.send(synced)
	r.commit("first load", nil)
	bad := []byte{10, 99, 0, 13}
	refuse := func(b *nft.Batch) error {
		var w strings.Builder
		if b.WriteTo(&w); strings.Contains(w.String(), string(bad)) {
			return fault.As(fault.Unknown, fmt.Errorf("in the kernel's place: %w", unix.EINVAL))
		}
		return nil
	}
	r.seen(func() { r.conn.Fail = refuse })
	r.send(service(13, func(s *state.Service) { s.ClusterIPs = []netip.Addr{netip.AddrFrom4([4]byte(bad))} }), service(60), slice(60, 1, 1), slice(14, 3, 3))
	r.commit("the others", nil)
	r.inKernel()
	r.seen(func() {
		if len(r.troubles) != 1 || r.troubles[0].Object != name(13) || r.troubles[0].Reason != reasonBarred {
			t.Errorf("troubles %+v", r.troubles)
		}
		if p := r.loop.families[0].model.Service(name(60)); len(p) != 1 {
			t.Errorf("the new Service is not served: %v", p)
		}
		if p := r.loop.families[0].model.Service(name(13)); len(p) != 0 {
			t.Errorf("the bad Service is served: %v", p)
		}
	})
	r.send(service(13))
	r.commit("mended", nil)
	r.inKernel()
	r.seen(func() {
		if last := r.troubles[len(r.troubles)-1]; last.Object != name(13) || last.Reason != "" {
			t.Errorf("troubles %+v", r.troubles)
		}
		if p := r.loop.families[0].model.Service(name(13)); len(p) != 1 {
			t.Errorf("the mended Service is not served")
		}
	})
}

func TestRivalsAreNamed(t *testing.T) {
	r := newRig(t, nil, false)
	port := func(s *state.Service) { s.Ports[0].NodePort = 30080 }
	r.send(service(1, port), service(2, port), slice(1, 1, 1), slice(2, 1, 2), synced)
	r.commit("first load", nil)
	r.seen(func() {
		if len(r.troubles) != 1 || r.troubles[0].Object != name(2) || !strings.Contains(r.troubles[0].Message, name(1).String()) {
			t.Errorf("troubles %+v", r.troubles)
		}
	})
	r.send(api.Event{DeleteService: &state.Name{Namespace: "ns", Name: name(1).Name}})
	r.commit("the first is gone", nil)
	r.inKernel()
	r.seen(func() {
		if len(r.troubles) != 2 || r.troubles[1].Reason != "" {
			t.Errorf("troubles %+v", r.troubles)
		}
	})
}

// Settings, the Node and ServiceCIDRs change while packets flow: chains are rewritten, elements stay.
func TestSettingsChangeLive(t *testing.T) {
	r := newRig(t, func(s *state.Settings) { s.LocalPods = []state.LocalPods{{By: state.ByNodeCIDR}} }, false)
	ext := func(s *state.Service) { s.Ports[0].NodePort = 30080; s.ExternalLocal = true }
	r.send(service(1, ext), slice(1, 2, 1), synced)
	r.commit("first load", nil)
	rules := func(c plan.Chain) (out string) {
		r.seen(func() {
			for _, chain := range r.loop.families[0].model.Rules().Ruleset() {
				for i := range chain.Rules {
					if chain.Name == c {
						out += chain.Rules[i].String() + "; "
					}
				}
			}
		})
		return out
	}
	if got := rules("masquerade-outside"); got != "" {
		t.Errorf("before the Node is known: %s", got)
	}
	r.send(api.Event{Node: &state.Node{Exists: true, IPs: []netip.Addr{netip.MustParseAddr("192.0.2.7")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.7.0/24")}}})
	if c := r.commit("Node", nil); c.Full || c.Elements != 2 { // one address for another
		t.Errorf("%+v", c)
	}
	if got := rules("masquerade-outside"); !strings.Contains(got, "10.1.7.0/24 return") {
		t.Errorf("the Node's pods: %s", got)
	}
	r.send(api.Event{CIDRs: &[]netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd96::/108")}})
	r.commit("ServiceCIDRs", nil)
	if got := rules("unallocated"); !strings.Contains(got, "10.96.0.0/12 drop") {
		t.Errorf("ServiceCIDRs: %s", got)
	}
	s := state.DefaultSettings("n")
	s.MasqueradeAll, s.MasqueradeBit, s.NodePorts = true, 3, state.NodePortAddrs{Ranges: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
	r.loop.Configure(t.Context(), s)
	if c := r.commit("settings", nil); c.Full || c.Elements != 2 {
		t.Errorf("%+v", c)
	}
	r.inKernel()
	r.seen(func() {
		if !slices.Equal(r.nodeIPs, []netip.Addr{netip.MustParseAddr("192.0.2.1")}) {
			t.Errorf("node ports answer on %v", r.nodeIPs)
		}
	})
}

func TestHealthPortsFollowTheCommit(t *testing.T) {
	r := newRig(t, nil, false)
	lb := func(s *state.Service) { s.ExternalLocal, s.HealthPort, s.Ports[0].NodePort = true, 32000, 30080 }
	r.send(service(1, lb), slice(1, 3, 1), service(2), synced)
	r.commit("first load", nil)
	want := func(what string, list ...state.HealthPort) {
		t.Helper()
		r.seen(func() {
			if !slices.Equal(r.health, list) {
				t.Errorf("%s: %v, want %v", what, r.health, list)
			}
		})
	}
	want("one endpoint here", state.HealthPort{Service: name(1), Port: 32000, Local: 1})
	r.send(api.Event{DeleteSlice: &state.Name{Namespace: "ns", Name: name(1).Name}})
	r.commit("no endpoints", nil)
	want("none", state.HealthPort{Service: name(1), Port: 32000})
	r.send(service(1))
	r.commit("no health check", nil)
	want("no port")
}

func TestMinSyncGathersChanges(t *testing.T) {
	const pause = 300 * time.Millisecond
	r := newRig(t, func(s *state.Settings) { s.MinSync = pause }, false)
	r.send(service(1), slice(1, 1, 1), synced)
	first := r.commit("first load", nil)
	r.send(slice(1, 1, 2))
	r.send(slice(1, 1, 3))
	if c := r.commit("later", nil); c.Began.Sub(first.Done) < pause || c.Elements != 3 { // one endpoint for another, and its hairpin
		t.Errorf("%v after the first: %+v", c.Began.Sub(first.Done), c)
	}
}

// kube-proxy's tables go once ours work.
func TestKubeProxysTablesGoAfterTheFirstCommit(t *testing.T) {
	r := newRig(t, nil, false)
	for _, fam := range []string{"ip", "ip6"} {
		if out, err := exec.Command("nft", "add", "table", fam, "kube-proxy").CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	}
	r.send(service(1), synced)
	r.commit("first load", nil)
	r.seen(func() {}) // what follows the commit is done too
	list := func() string {
		out, err := exec.Command("nft", "list", "tables").CombinedOutput()
		if err != nil {
			t.Fatalf("%v %s", err, out)
		}
		return string(out)
	}
	if out := list(); strings.Contains(out, "kube-proxy") || strings.Count(out, act.TableName) != 2 {
		t.Errorf("tables:\n%s", out)
	}
}
