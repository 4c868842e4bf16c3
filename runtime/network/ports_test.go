package network

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/netns"
	"worknode/kernel/nft"
)

func openPorts(t testing.TB, ns string, live map[string][]Mapping) *Ports {
	t.Helper()
	var p *Ports
	in(t, ns, func() (err error) {
		if p, err = OpenPorts("wn0", false); err != nil {
			return err
		}
		return p.Reconcile(live)
	})
	return p
}

func mapping(proto uint8, host string, hostPort uint16, pod netip.Addr, podPort uint16) Mapping {
	m := Mapping{Proto: proto, HostPort: hostPort, To: netip.AddrPortFrom(pod, podPort)}
	if host != "" {
		m.HostIP = netip.MustParseAddr(host)
	}
	return m
}

func addPorts(t testing.TB, ns string, p *Ports, sandbox string, m ...Mapping) {
	t.Helper()
	in(t, ns, func() error { return p.Add(sandbox, m) })
}

// seen connects to an address and port and returns how the server sees the client.
func seen(ns, to string) (as string, err error) {
	err = netns.Do(ns, func() error {
		c, err := net.DialTimeout("tcp", to, time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = fmt.Fscanln(c, &as)
		return err
	})
	return as, err
}

func wantSeen(t testing.TB, ns, to, as string) {
	t.Helper()
	got, err := seen(ns, to)
	if err != nil || got != as {
		t.Errorf("%s sees the client as %q (%v), want %s", to, got, err, as)
	}
}

func wantClosed(t testing.TB, ns, to string) {
	t.Helper()
	if as, err := seen(ns, to); err == nil {
		t.Errorf("%s answers, seeing the client as %s", to, as)
	}
}

func command(t testing.TB, ns string, args ...string) {
	t.Helper()
	in(t, ns, func() error {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
		}
		return nil
	})
}

func TestAHostPortAnswersFromEverywhere(t *testing.T) {
	node, outside := namespace(t), namespace(t)
	in(t, node, func() error { return uplink(outside) })
	b := openIn(t, node, testConfig)
	one, r1 := addPod(t, b, "one")
	two, _ := addPod(t, b, "two")
	serve(t, one)
	p := openPorts(t, node, nil)
	defer p.Close(false)
	addPorts(t, node, p, "one", mapping(unix.IPPROTO_TCP, "", 8080, r1.IPs[0], 80), mapping(unix.IPPROTO_TCP, "10.200.0.1", 8081, r1.IPs[0], 80),
		mapping(unix.IPPROTO_TCP, "127.0.0.1", 8082, r1.IPs[0], 80), mapping(unix.IPPROTO_SCTP, "", 8080, r1.IPs[0], 80))
	wantSeen(t, outside, "192.0.2.1:8080", "192.0.2.2") // the client's own address reaches the pod
	wantSeen(t, node, "192.0.2.1:8080", "192.0.2.1")
	wantSeen(t, node, "127.0.0.1:8080", "10.200.0.1")
	wantSeen(t, node, "127.9.9.9:8080", "10.200.0.1")
	wantSeen(t, two, "192.0.2.1:8080", "10.200.0.3")
	wantSeen(t, one, "192.0.2.1:8080", "10.200.0.1") // itself: the answer must pass the node
	wantSeen(t, two, "10.200.0.1:8081", "10.200.0.3")
	wantClosed(t, outside, "192.0.2.1:8081")
	wantSeen(t, node, "127.0.0.1:8082", "10.200.0.1")
	wantClosed(t, outside, "192.0.2.1:8082")
	in(t, node, func() error { return p.Del("one") })
	for _, port := range []string{"8080", "8082"} {
		wantClosed(t, node, "127.0.0.1:"+port)
		wantClosed(t, outside, "192.0.2.1:"+port)
	}
	in(t, node, func() error { return p.Del("one") })
}

func TestTwoPodsCannotHaveOnePort(t *testing.T) {
	node := namespace(t)
	b := openIn(t, node, testConfig)
	_, r1 := addPod(t, b, "one")
	_, r2 := addPod(t, b, "two")
	p := openPorts(t, node, nil)
	defer p.Close(false)
	addPorts(t, node, p, "one", mapping(unix.IPPROTO_TCP, "", 80, r1.IPs[0], 80), mapping(unix.IPPROTO_TCP, "10.200.0.1", 81, r1.IPs[0], 80))
	for _, tt := range []struct {
		m    Mapping
		kind fault.Kind // Unknown: it fits
	}{
		{mapping(unix.IPPROTO_TCP, "", 80, r2.IPs[0], 80), fault.Exists},
		{mapping(unix.IPPROTO_TCP, "0.0.0.0", 80, r2.IPs[0], 80), fault.Exists},
		{mapping(unix.IPPROTO_TCP, "10.200.0.1", 80, r2.IPs[0], 80), fault.Exists},
		{mapping(unix.IPPROTO_TCP, "", 81, r2.IPs[0], 80), fault.Exists},
		{mapping(unix.IPPROTO_TCP, "10.200.0.1", 81, r2.IPs[0], 80), fault.Exists},
		{mapping(unix.IPPROTO_TCP, "fd00::1", 83, r2.IPs[0], 80), fault.Invalid},
		{mapping(unix.IPPROTO_TCP, "127.0.0.1", 81, r2.IPs[0], 80), fault.Unknown},
		{mapping(unix.IPPROTO_UDP, "", 80, r2.IPs[0], 80), fault.Unknown},
		{mapping(unix.IPPROTO_TCP, "", 82, r2.IPs[0], 80), fault.Unknown},
	} {
		var err error
		in(t, node, func() error { err = p.Add("two", []Mapping{tt.m}); return nil })
		if fault.Of(err) != tt.kind || (err == nil) != (tt.kind == fault.Unknown) {
			t.Errorf("%s: got %v, want %v", tt.m, err, tt.kind)
		}
		if tt.kind == fault.Exists && !strings.Contains(fmt.Sprint(err), "sandbox one") {
			t.Errorf("%v does not say who has the port", err)
		}
	}
	if err := p.Add("two", []Mapping{mapping(unix.IPPROTO_TCP, "", 90, r2.IPs[0], 80), mapping(unix.IPPROTO_TCP, "", 90, r2.IPs[0], 81)}); !fault.Is(err, fault.Invalid) {
		t.Errorf("one pod asks for a port twice: %v", err)
	}
}

// 127.0.0.1 is opened for host ports alone: a pod that aims at the node's loopback gets nothing, as before.
func TestPodsDoNotReachTheNodesLoopback(t *testing.T) {
	node := namespace(t)
	b := openIn(t, node, testConfig)
	pod, r := addPod(t, b, "pod")
	var private *net.UDPConn
	in(t, node, func() (err error) {
		private, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7777})
		return err
	})
	defer private.Close()
	attack := func() bool { // one datagram from the pod; whether the node's loopback gets it
		in(t, pod, func() error {
			c, err := net.Dial("udp4", "127.0.0.1:7777")
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("hello"))
			return err
		})
		private.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		_, err := private.Read(make([]byte, 10))
		return err == nil
	}
	for _, own := range []string{"127.0.0.0/8", "127.0.0.1"} {
		command(t, pod, "ip", "route", "del", "local", own, "dev", "lo", "table", "local")
	}
	in(t, pod, func() error { return sysctl("net/ipv4/conf/eth0/route_localnet", "1") })
	command(t, pod, "ip", "route", "add", "127.0.0.0/8", "via", "10.200.0.1", "dev", "eth0", "onlink", "src", r.IPs[0].String())
	in(t, node, func() error { return sysctl("net/ipv4/conf/wn0/route_localnet", "1") })
	// The first datagram may wait for the neighbour's address and come too late to count.
	for tries := 1; !attack(); tries++ {
		if tries == 20 {
			t.Fatal("the attack does not even work on a node that only has the switch on")
		}
	}
	p := openPorts(t, node, nil)
	defer p.Close(false)
	addPorts(t, node, p, "pod", mapping(unix.IPPROTO_TCP, "", 8080, r.IPs[0], 80))
	if attack() {
		t.Error("a pod reaches the node's loopback")
	}
	in(t, node, func() error { return p.Del("pod") })
	if attack() {
		t.Error("a pod reaches the node's loopback")
	}
}

// answerUDP replies with a name to every datagram on a port of a namespace.
func answerUDP(t testing.TB, ns, name string, port int) {
	t.Helper()
	in(t, ns, func() error {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: port})
		if err != nil {
			return err
		}
		t.Cleanup(func() { c.Close() })
		go func() {
			var buf [64]byte
			for {
				_, from, err := c.ReadFromUDPAddrPort(buf[:])
				if err != nil {
					return
				}
				c.WriteToUDPAddrPort([]byte(name), from)
			}
		}()
		return nil
	})
}

// A UDP client that never closes its socket follows the port from the node to one pod and on to the next.
func TestUDPClientsFollowThePort(t *testing.T) {
	node, outside := namespace(t), namespace(t)
	in(t, node, func() error { return uplink(outside) })
	b := openIn(t, node, testConfig)
	one, r1 := addPod(t, b, "one")
	two, r2 := addPod(t, b, "two")
	answerUDP(t, one, "one", 53)
	answerUDP(t, two, "two", 53)
	p := openPorts(t, node, nil)
	defer p.Close(false)
	var c net.Conn
	in(t, outside, func() (err error) {
		c, err = net.Dial("udp4", "192.0.2.1:5353")
		return err
	})
	defer c.Close()
	ask := func() string {
		var buf [64]byte
		c.Write([]byte("?"))
		c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		n, _ := c.Read(buf[:])
		return string(buf[:n])
	}
	if got := ask(); got != "" {
		t.Fatalf("answer %q from nobody", got)
	}
	addPorts(t, node, p, "one", mapping(unix.IPPROTO_UDP, "", 5353, r1.IPs[0], 53))
	if got := ask(); got != "one" {
		t.Errorf("answer %q, want one's", got)
	}
	in(t, node, func() error { return p.Del("one") })
	if got := ask(); got != "" {
		t.Errorf("answer %q after the port was closed", got)
	}
	addPorts(t, node, p, "two", mapping(unix.IPPROTO_UDP, "", 5353, r2.IPs[0], 53))
	if got := ask(); got != "two" {
		t.Errorf("answer %q, want two's", got)
	}
}

func tables(t testing.TB, ns string) (out []string) {
	t.Helper()
	in(t, ns, func() error {
		c, err := nft.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		for fam, name := range map[nft.Family]string{nft.IPv4: "ip", nft.IPv6: "ip6"} {
			if _, err := c.Table(fam, portsTable("wn0")); err == nil {
				out = append(out, name)
			} else if !fault.Is(err, fault.NotFound) {
				return err
			}
		}
		return nil
	})
	return out
}

func TestHostPortsOutliveTheRuntime(t *testing.T) {
	node, outside := namespace(t), namespace(t)
	in(t, node, func() error { return uplink(outside) })
	b := openIn(t, node, testConfig)
	one, r1 := addPod(t, b, "one")
	two, r2 := addPod(t, b, "two")
	serve(t, one)
	serve(t, two)
	p := openPorts(t, node, nil)
	if got := tables(t, node); got != nil {
		t.Errorf("tables %v without a host port", got)
	}
	m1, m2 := mapping(unix.IPPROTO_TCP, "", 8080, r1.IPs[0], 80), mapping(unix.IPPROTO_TCP, "", 8081, r2.IPs[0], 80)
	addPorts(t, node, p, "one", m1)
	addPorts(t, node, p, "two", m2)
	var c net.Conn
	in(t, outside, func() (err error) {
		c, err = net.Dial("tcp4", "192.0.2.1:8080")
		return err
	})
	defer c.Close()
	var line string
	if _, err := fmt.Fscanln(c, &line); err != nil {
		t.Fatal(err)
	}
	p.Close(false)
	wantSeen(t, outside, "192.0.2.1:8080", "192.0.2.2") // while nobody is there
	p = openPorts(t, node, map[string][]Mapping{"one": {m1}})
	if _, err := fmt.Fprintln(c, "still"); err != nil {
		t.Error(err)
	}
	c.SetReadDeadline(time.Now().Add(3 * time.Second))
	if _, err := fmt.Fscanln(c, &line); err != nil || line != "still" {
		t.Errorf("the connection broke: %q %v", line, err)
	}
	wantSeen(t, outside, "192.0.2.1:8080", "192.0.2.2")
	wantClosed(t, outside, "192.0.2.1:8081") // its sandbox is gone
	var conflict error
	in(t, node, func() error { conflict = p.Add("three", []Mapping{m1}); return nil })
	if !fault.Is(conflict, fault.Exists) {
		t.Errorf("a port of an adopted sandbox was given away: %v", conflict)
	}
	in(t, node, func() error { return p.Close(true) })
	if got := tables(t, node); got != nil {
		t.Errorf("tables %v are left", got)
	}
	in(t, node, func() error {
		if v, err := os.ReadFile("/proc/sys/net/ipv4/conf/wn0/route_localnet"); err != nil || strings.TrimSpace(string(v)) != "0" {
			t.Errorf("route_localnet is %s, %v", v, err)
		}
		return nil
	})
}

func TestHostPortsOfIPv6(t *testing.T) {
	node, pod, outside := namespace(t), namespace(t), namespace(t)
	for i, other := range []string{pod, outside} {
		near, far := fmt.Sprintf("fd00:%d::1", i+1), fmt.Sprintf("fd00:%d::2", i+1)
		wire := fmt.Sprintf("v%d", i)
		command(t, node, "ip", "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", netnsOf(t, other))
		command(t, node, "ip", "link", "set", wire, "up")
		command(t, node, "ip", "addr", "add", near+"/64", "dev", wire, "nodad")
		command(t, other, "ip", "link", "set", "eth0", "up")
		command(t, other, "ip", "addr", "add", far+"/64", "dev", "eth0", "nodad")
		command(t, other, "ip", "route", "add", "default", "via", near)
	}
	in(t, node, func() error { return sysctl("net/ipv6/conf/all/forwarding", "1") })
	in(t, pod, func() error {
		l, err := net.Listen("tcp6", "[::]:80")
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				fmt.Fprintln(c, host)
				c.Close()
			}
		}()
		return nil
	})
	p := openPorts(t, node, nil)
	defer p.Close(false)
	addPorts(t, node, p, "pod", mapping(unix.IPPROTO_TCP, "", 8080, netip.MustParseAddr("fd00:1::2"), 80),
		mapping(unix.IPPROTO_TCP, "fd00:2::1", 8081, netip.MustParseAddr("fd00:1::2"), 80))
	until(t, "the new links to carry packets", func() bool {
		_, err := seen(outside, "[fd00:1::2]:80")
		return err == nil
	})
	wantSeen(t, outside, "[fd00:2::1]:8080", "fd00:2::2")
	wantSeen(t, outside, "[fd00:2::1]:8081", "fd00:2::2")
	wantSeen(t, pod, "[fd00:2::1]:8080", "fd00:1::1") // itself
	wantClosed(t, outside, "[fd00:1::1]:8081")
	if got := tables(t, node); len(got) != 1 || got[0] != "ip6" {
		t.Errorf("tables %v", got)
	}
}

// netnsOf lends a namespace's path to a command: ip(8) takes a pid or a name below /run/netns.
func netnsOf(t testing.TB, ns string) string {
	t.Helper()
	cmd := exec.Command("nsenter", "--net="+ns, "sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	until(t, "nsenter to enter", func() bool {
		now, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
		return err == nil && now != own
	})
	return fmt.Sprint(cmd.Process.Pid)
}
