package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/link"
	"worknode/kernel/netns"
	"worknode/kernel/nft"
)

func namespace(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes networks: run it as root")
	}
	dir := filepath.Join(t.TempDir(), "ns")
	if err := netns.Create(dir, "", netns.Net); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netns.Unpin(dir) })
	return filepath.Join(dir, "net")
}

func in(t testing.TB, ns string, fn func() error) {
	t.Helper()
	if err := netns.Do(ns, fn); err != nil {
		t.Fatal(err)
	}
}

var testConfig = Config{Bridge: "wn0", Subnet: netip.MustParsePrefix("10.200.0.0/24")}

func openIn(t testing.TB, ns string, c Config) *Bridge {
	t.Helper()
	var b *Bridge
	in(t, ns, func() (err error) {
		b, err = Open(c)
		return err
	})
	t.Cleanup(func() { b.Close(false) })
	return b
}

func addPod(t testing.TB, b *Bridge, name string) (ns string, r Result) {
	t.Helper()
	ns = namespace(t)
	r, err := b.Add(t.Context(), name, ns)
	if err != nil {
		t.Fatal(err)
	}
	return ns, r
}

// serve answers every connection to port 80 of the namespace with the client's address, as the server sees it.
func serve(t testing.TB, ns string) {
	t.Helper()
	var l net.Listener
	in(t, ns, func() (err error) {
		l, err = net.Listen("tcp4", ":80")
		return err
	})
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				io.WriteString(c, host+"\n")
				io.Copy(c, c)
				c.Close()
			}()
		}
	}()
}

func dial(ns string, to netip.Addr) (c net.Conn, seenAs string, err error) {
	err = netns.Do(ns, func() error {
		c, err = net.DialTimeout("tcp4", net.JoinHostPort(to.String(), "80"), 3*time.Second)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	_, err = fmt.Fscanln(c, &seenAs)
	return c, seenAs, err
}

func reach(t testing.TB, from string, to netip.Addr, wantSeen string) {
	t.Helper()
	c, seen, err := dial(from, to)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if seen != wantSeen {
		t.Errorf("%s sees the client as %s, want %s", to, seen, wantSeen)
	}
}

func TestPodsAndNodeReachEachOtherUnderTheirOwnAddresses(t *testing.T) {
	node := namespace(t)
	b := openIn(t, node, testConfig)
	one, r1 := addPod(t, b, "one")
	two, r2 := addPod(t, b, "two")
	if r1.IPs[0].String() != "10.200.0.2" || r2.IPs[0].String() != "10.200.0.3" || r1.Interface != "eth0" || r1.MTU != 1500 {
		t.Fatalf("results %+v, %+v", r1, r2)
	}
	serve(t, one)
	serve(t, two)
	serve(t, node)
	reach(t, one, r2.IPs[0], "10.200.0.2")
	reach(t, two, r1.IPs[0], "10.200.0.3")
	reach(t, one, r1.IPs[0], "10.200.0.2")
	reach(t, node, r1.IPs[0], "10.200.0.1")
	reach(t, one, b.gateway, "10.200.0.2")
	if err := b.Ready(); err != nil {
		t.Error(err)
	}
}

// A Service's translation must hold for a client and an endpoint on one node, though both hang on one bridge: the answer
// has to come back through the node. Without it the client sees a stranger's packet and resets.
func TestTranslationHoldsBetweenNeighbours(t *testing.T) {
	node := namespace(t)
	b := openIn(t, node, testConfig)
	one, _ := addPod(t, b, "one")
	two, r2 := addPod(t, b, "two")
	serve(t, two)
	service := netip.MustParseAddr("10.99.0.1")
	in(t, node, func() error {
		c, err := nft.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		tb := nft.NewBatch(nft.IPv4, "service")
		tb.AddTable(0, "")
		tb.AddChain("pre", &nft.Hook{Type: "nat", Num: unix.NF_INET_PRE_ROUTING, Priority: -100})
		tb.AddSet(nft.Set{Name: "m", Key: []nft.Type{nft.TypeIPv4}, Data: []nft.Type{nft.TypeIPv4, nft.TypePort}})
		data := append(r2.IPs[0].AsSlice(), 0, 80, 0, 0)
		tb.AddElems("m", []nft.Elem{{Key: service.AsSlice(), Data: data}})
		tb.AddRule("pre", nft.Payload(nft.NetworkHeader, destinationAt, 4, nft.R0), nft.Find("m", nft.R0, nft.R0), nft.DNAT(nft.IPv4, nft.R0, nft.R0+1))
		return c.Commit(tb)
	})
	for range 3 { // an ICMP redirect would spoil the second
		reach(t, one, service, "10.200.0.2")
	}
}

func TestTrafficToElsewhereIsMasqueraded(t *testing.T) {
	node, outside := namespace(t), namespace(t)
	in(t, node, func() error { return uplink(outside) })
	b := openIn(t, node, testConfig)
	pod, _ := addPod(t, b, "pod")
	serve(t, outside)
	if b.mtu != 1400 {
		t.Errorf("MTU %d, the uplink has 1400", b.mtu)
	}
	reach(t, pod, netip.MustParseAddr("192.0.2.2"), "192.0.2.1")
	in(t, outside, func() error { // who has a route back sees that the node itself is not touched
		h, err := link.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		return h.SetupInside("up", netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.1"))
	})
	reach(t, node, netip.MustParseAddr("192.0.2.2"), "192.0.2.1")
}

// uplink gives the calling namespace a default route to another one, over a link with an MTU of its own.
func uplink(other string) error {
	h, err := link.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	ns, err := os.Open(other)
	if err != nil {
		return err
	}
	defer ns.Close()
	br, err := h.EnsureBridge("up0", 1400, hardware(netip.MustParseAddr("192.0.2.1")))
	if err != nil {
		return err
	}
	v := link.Veth{Name: "up1", Bridge: br.Index, MTU: 1400, PeerName: "up", PeerNS: int(ns.Fd()), PeerMAC: hardware(netip.MustParseAddr("192.0.2.2"))}
	if err := h.AddVeth(v); err != nil {
		return err
	}
	if err := h.SetupInside("up0", netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")); err != nil {
		return err
	}
	return netns.Do(other, func() error {
		o, err := link.Open()
		if err != nil {
			return err
		}
		defer o.Close()
		d, err := o.Get("up")
		if err != nil {
			return err
		}
		if err := o.SetAddress(d.Index, netip.MustParsePrefix("192.0.2.2/24")); err != nil {
			return err
		}
		return o.SetupInside("up", netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.1"))
	})
}

func TestARestartKeepsConnectionsAndRemovesOrphans(t *testing.T) {
	node := namespace(t)
	b := openIn(t, node, testConfig)
	one, r1 := addPod(t, b, "one")
	two, r2 := addPod(t, b, "two")
	addPod(t, b, "orphan")
	serve(t, two)
	c, _, err := dial(one, r2.IPs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b.Close(false) // as a kill would: nothing is taken down

	b = openIn(t, node, testConfig)
	if err := b.Reconcile(map[string][]netip.Addr{"one": r1.IPs, "two": r2.IPs}); err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := io.WriteString(c, "still here\n"); err != nil {
		t.Fatal(err)
	}
	var got string
	if _, err := fmt.Fscan(c, &got); err != nil || got != "still" {
		t.Fatalf("the connection is lost: %q, %v", got, err)
	}
	in(t, node, func() error {
		h, err := link.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		if _, err := h.Get(portName("orphan")); !fault.Is(err, fault.NotFound) {
			t.Errorf("the orphan's device is still there: %v", err)
		}
		return nil
	})
	if _, r := addPod(t, b, "new"); r.IPs[0] == r1.IPs[0] || r.IPs[0] == r2.IPs[0] {
		t.Errorf("address %s was given twice", r.IPs[0])
	}
}

func TestAddAndDelMayBeRepeated(t *testing.T) {
	node := namespace(t)
	b := openIn(t, node, testConfig)
	ns, r := addPod(t, b, "pod")
	again, err := b.Add(t.Context(), "pod", ns)
	if err != nil || again.IPs[0] != r.IPs[0] {
		t.Fatalf("got %v, %v", again, err)
	}
	serve(t, ns)
	reach(t, node, r.IPs[0], "10.200.0.1")
	for range 2 {
		if err := b.Del(t.Context(), "pod", ns); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Add(t.Context(), "pod", ns); !fault.Is(err, fault.Temporary) {
		t.Errorf("connected while leaving: %v", err)
	}
	until(t, "the address is free, although something holds the namespace", func() bool { return b.free(r.IPs[0]) })
	in(t, ns, func() error {
		if _, err := net.InterfaceByName("eth0"); err == nil {
			t.Error("eth0 is still there")
		}
		return nil
	})
	if _, err := b.Add(t.Context(), "gone", "/nonexistent/net"); !fault.Is(err, fault.NotFound) {
		t.Errorf("want NotFound, got %v", err)
	}
	if !b.free(r.IPs[0].Next()) {
		t.Error("a sandbox that could not be connected keeps its address")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Add(ctx, "late", ns); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func (b *Bridge) free(a netip.Addr) bool {
	b.pool.mu.Lock()
	defer b.pool.mu.Unlock()
	_, taken := b.pool.owner[a]
	return !taken
}

// until waits for something that no event announces.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not within ten seconds: %s", what)
		}
	}
}

func TestADeadNamespaceTakesItsDeviceAlong(t *testing.T) {
	node := namespace(t)
	b := openIn(t, node, testConfig)
	var addrs []netip.Addr
	for i := range 20 {
		ns, r := addPod(t, b, fmt.Sprint("pod", i))
		addrs = append(addrs, r.IPs[0])
		if err := b.Del(t.Context(), fmt.Sprint("pod", i), ns); err != nil {
			t.Fatal(err)
		}
		if err := netns.Unpin(filepath.Dir(ns)); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range addrs {
		until(t, "address "+a.String()+" is free", func() bool { return b.free(a) })
	}
	list, err := b.links.List()
	for _, d := range list {
		if strings.HasPrefix(d.Name, portPrefix) {
			t.Errorf("device %s is left", d.Name)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestTakeDownLeavesNothing(t *testing.T) {
	node := namespace(t)
	for _, how := range []string{"close", "remove after a kill"} {
		b := openIn(t, node, testConfig)
		addPod(t, b, "pod")
		if how == "close" {
			if err := b.Close(true); err != nil {
				t.Fatal(err)
			}
		} else {
			b.Close(false)
			for range 2 {
				in(t, node, func() error { return Remove("wn0") })
			}
		}
		in(t, node, func() error {
			h, err := link.Open()
			if err != nil {
				return err
			}
			defer h.Close()
			list, err := h.List()
			for _, d := range list {
				if d.Name != "lo" {
					t.Errorf("%s: device %s is left", how, d.Name)
				}
			}
			c, err1 := nft.Open()
			if err1 != nil {
				return err1
			}
			defer c.Close()
			if _, err := c.Table(nft.IPv4, tableName("wn0")); !fault.Is(err, fault.NotFound) {
				t.Errorf("%s: the table is left: %v", how, err)
			}
			return err
		})
	}
}

func TestReadyTellsWhatIsMissing(t *testing.T) {
	node := namespace(t)
	b := openIn(t, node, testConfig)
	in(t, node, func() error {
		h, err := link.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		return h.Delete("wn0")
	})
	if err := b.Ready(); err == nil || !strings.Contains(err.Error(), "wn0") {
		t.Errorf("got %v", err)
	}
}

func TestBadSettingsAreNamed(t *testing.T) {
	for _, tt := range []struct {
		c    Config
		kind fault.Kind
		want string
	}{
		{Config{Bridge: "wn0"}, fault.Invalid, "subnet"},
		{Config{Bridge: "wn0", Subnet: netip.MustParsePrefix("fd00::/64")}, fault.Invalid, "fd00::/64"},
		{Config{Bridge: "wn0", Subnet: netip.MustParsePrefix("10.0.0.0/30")}, fault.Invalid, "/30"},
		{Config{Bridge: "a-name-far-too-long", Subnet: testConfig.Subnet}, fault.Invalid, "a-name-far-too-long"},
		{Config{Bridge: "wn0", Subnet: testConfig.Subnet, MTU: 9}, fault.Invalid, "MTU 9"},
		{Config{Bridge: "lo", Subnet: testConfig.Subnet}, fault.Exists, "lo"},
		{Config{Bridge: "wn0", Subnet: netip.MustParsePrefix("127.0.0.0/16")}, fault.Exists, "127.0.0.0/16"},
	} {
		err := netns.Do(namespace(t), func() error {
			b, err := Open(tt.c)
			if err == nil {
				b.Close(true)
			}
			return err
		})
		if !fault.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: got %v", tt.c, err)
		}
	}
}

func BenchmarkAdd(b *testing.B) {
	node := namespace(b)
	br := openIn(b, node, Config{Bridge: "wn0", Subnet: netip.MustParsePrefix("10.200.0.0/16")})
	base := b.TempDir()
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		dir := filepath.Join(base, fmt.Sprint(i))
		if err := netns.Create(dir, "", netns.Net); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if _, err := br.Add(b.Context(), dir, dir+"/net"); err != nil {
			b.Fatal(err)
		}
		if err := br.Del(b.Context(), dir, dir+"/net"); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := netns.Unpin(dir); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
