package conntrack

import (
	"encoding/binary"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"worknode/kernel/nft"
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

// flow makes the kernel track a flow from a client to a front, answered by an endpoint.
func flow(t testing.TB, conn *nft.Conn, proto byte, client, front, answers netip.AddrPort) {
	t.Helper()
	family, src, dst := nft.IPv4, uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
	if front.Addr().Is6() {
		family, src, dst = nft.IPv6, ctaIPv6Src, ctaIPv6Dst
	}
	tuple := func(r *nft.Request, typ uint16, from, to netip.AddrPort) {
		r.Nest(typ, func() {
			r.Nest(ctaTupleIP, func() {
				r.Bytes(src, from.Addr().AsSlice())
				r.Bytes(dst, to.Addr().AsSlice())
			})
			r.Nest(ctaTupleProto, func() {
				r.Bytes(ctaProtoNum, []byte{proto})
				r.Bytes(ctaProtoSrcPort, binary.BigEndian.AppendUint16(nil, from.Port()))
				r.Bytes(ctaProtoDstPort, binary.BigEndian.AppendUint16(nil, to.Port()))
			})
		})
	}
	const ctaStatus, ctaProtoinfo, ctaTimeout = 3, 4, 7
	err := conn.Change(unix.NFNL_SUBSYS_CTNETLINK, 0, family, unix.NLM_F_CREATE|unix.NLM_F_EXCL, func(r *nft.Request) {
		tuple(r, ctaTupleOrig, client, front)
		tuple(r, ctaTupleReply, answers, client)
		r.Uint32(ctaTimeout, 600)
		r.Uint32(ctaStatus, 1<<1|1<<3) // SEEN_REPLY, CONFIRMED
		if proto == unix.IPPROTO_TCP {
			r.Nest(ctaProtoinfo, func() { r.Nest(1, func() { r.Bytes(1, []byte{3}) }) }) // TCP, state established
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// Only UDP flows to the fronts asked for end, and of those only the stale ones, whether they are asked for one by one or
// all at once.
func TestEndUDPToEndsStaleFlowsOnly(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, many := range []bool{false, true} {
			conn := inNetns(t)
			family, vip, other, good, bad := nft.IPv4, at("10.96.0.1:53"), at("10.96.0.2:53"), at("10.0.0.1:5353"), at("10.0.0.2:5353")
			client := netip.MustParseAddr("10.1.0.1")
			if v6 {
				family, vip, other, good, bad = nft.IPv6, at("[fd96::1]:53"), at("[fd96::2]:53"), at("[fd00::1]:5353"), at("[fd00::2]:5353")
				client = netip.MustParseAddr("fd01::1")
			}
			port := uint16(10000)
			add := func(proto byte, front, answers netip.AddrPort) {
				port++
				flow(t, conn, proto, netip.AddrPortFrom(client, port), front, answers)
			}
			for range 3 {
				add(unix.IPPROTO_UDP, vip, bad)
			}
			add(unix.IPPROTO_UDP, vip, good)
			add(unix.IPPROTO_UDP, other, bad)
			add(unix.IPPROTO_TCP, vip, bad)
			to := []netip.AddrPort{vip}
			for i := 0; many && i <= fewFronts; i++ {
				to = append(to, netip.AddrPortFrom(vip.Addr(), uint16(1000+i)))
			}
			stale := func(f Flow) bool { return f.Dst == vip && f.Answers != good }
			for _, want := range []int{3, 0} {
				if ended, err := EndUDPTo(conn, family, to, stale); err != nil || len(ended) != want {
					t.Errorf("v6 %v, many %v: %d ended, want %d; %v", v6, many, len(ended), want, err)
				}
			}
			left := 0
			_, err := EndUDP(conn, family, func(Flow) bool { left++; return false })
			if err != nil || left != 2 {
				t.Errorf("v6 %v, many %v: %d UDP flows left, want 2; %v", v6, many, left, err)
			}
		}
	}
}

// An answer that comes too late makes a flow from the front to the client: that one ends, others of the client do not.
func TestEndTurnedEndsWhatALateAnswerBegan(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		conn := inNetns(t)
		family, front, client := nft.IPv4, at("192.0.2.9:53"), at("10.1.0.1:4000")
		if v6 {
			family, front, client = nft.IPv6, at("[2001:db8::9]:53"), at("[fd01::1]:4000")
		}
		flow(t, conn, unix.IPPROTO_UDP, front, client, client)
		flow(t, conn, unix.IPPROTO_UDP, netip.AddrPortFrom(client.Addr(), 4001), front, front)
		cut := []Flow{{Src: client, Dst: front, Answers: front, proto: unix.IPPROTO_UDP}}
		for _, want := range []int{1, 0} {
			if had, err := EndTurned(conn, family, cut); err != nil || len(had) != want || cut[0].Translated() {
				t.Errorf("v6 %v: %d had one, want %d; %v", v6, len(had), want, err)
			}
			left := 0
			if _, err := EndUDP(conn, family, func(f Flow) bool { left++; return false }); err != nil || left != 1 {
				t.Errorf("v6 %v: %d flows left, want 1; %v", v6, left, err)
			}
		}
	}
}

// The kernel's filter is what keeps the cleaner cheap beside a full table; a kernel of 5.8 or later has it.
func BenchmarkFindOneFrontAmongMany(b *testing.B) {
	conn := inNetns(b)
	for i := range 20000 {
		flow(b, conn, unix.IPPROTO_UDP, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 999), at("10.96.0.9:53"), at("10.0.0.1:53"))
	}
	for _, c := range []struct {
		name string
		to   netip.AddrPort
	}{{"filtered", at("10.96.0.1:53")}, {"all", netip.AddrPort{}}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				if found, err := find(conn, nft.IPv4, c.to, func(f Flow) bool { return f.Dst == at("10.96.0.1:53") }); err != nil || len(found) > 0 {
					b.Fatal(found, err)
				}
			}
		})
	}
}
