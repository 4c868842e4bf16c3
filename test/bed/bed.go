// Package bed is a small world of network namespaces for a service proxy to work in: the node under test in the middle,
// with pods, endpoints, another node, clients from outside and the rest of the world around it. What a packet comes to
// is told by who answers it: endpoints answer on every address of theirs, and the world answers whatever leaves the
// node for a Service's address untranslated, so that a packet that is merely lost is never mistaken for a dropped one.
//
//	pod   10.0.0.0/24     clients in pods ──┐                ┌── out   203.0.113.0/24  clients from outside
//	back  10.180.0.0/24   local endpoints ──┤      node      ├── world (default route)  VIPs that nobody took care of
//	                      on any address    │ 192.168.0.2    │
//	peer  192.168.0.3     another node ─────┘ 192.168.1.2    │
//	      10.180.1.0/24, 10.180.2.0/24: its endpoints
//
// All of it exists twice: every IPv4 address has its IPv6 twin (see Twin).
package bed

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netns"
)

// Addresses that everything is built of.
const (
	NodeName = "test-node"
	NodeIP   = "192.168.0.2"
	NodeAlt  = "192.168.1.2" // a second address of the node, which is not in its Node object
	PeerIP   = "192.168.0.3" // the other node
	PodCIDR  = "10.0.0.0/8"
	Services = "172.30.0.0/16"
	PodIP    = "10.0.0.2"    // a client in a pod
	Outside  = "203.0.113.2" // a client from outside
)

// escapes are the networks of VIPs, for which the world answers.
var escapes = []string{"1.2.3.0/24", "5.6.7.0/24", "9.10.11.0/24", "192.168.99.0/24", Services}

// homes are the networks of each namespace; the node has what is left.
var homes = []struct {
	ns   string
	nets []string
	own  string // the address of its end of the wire
	gate string // the node's end
}{
	{"pod", []string{"10.0.0.0/24"}, "172.16.1.2", "172.16.1.1"},
	{"back", []string{"10.180.0.0/24"}, "172.16.2.2", "172.16.2.1"},
	{"peer", []string{PeerIP + "/32", "10.180.1.0/24", "10.180.2.0/24"}, "172.16.3.2", "172.16.3.1"},
	{"out", []string{"203.0.113.0/24"}, "172.16.4.2", "172.16.4.1"},
	{"world", escapes, "172.16.5.2", "172.16.5.1"},
}

// Twin is the IPv6 address that stands for an IPv4 one.
func Twin(a netip.Addr) netip.Addr {
	if a.IsLoopback() {
		return netip.IPv6Loopback()
	}
	v4 := a.As4()
	out := [16]byte{0: 0xfd}
	copy(out[12:], v4[:])
	return netip.AddrFrom16(out)
}

// TwinPrefix is the IPv6 network of the twins of an IPv4 network.
func TwinPrefix(p netip.Prefix) netip.Prefix {
	if p.Bits() == 0 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(Twin(p.Addr()), 96+p.Bits())
}

// Home is the namespace that an address (of either family) lives in.
func Home(a netip.Addr) string {
	for _, h := range homes {
		for _, text := range h.nets {
			p := netip.MustParsePrefix(text)
			if h.ns != "world" && (p.Contains(a) || TwinPrefix(p).Contains(a)) {
				return h.ns
			}
		}
	}
	return "node"
}

// Bed is one such world. Several can exist beside each other.
type Bed struct {
	prefix string
	mu     sync.Mutex
	ends   []func()
}

var made atomic.Int32

// New makes the namespaces; Close removes them.
func New() (*Bed, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("the packet bed makes network namespaces and needs root")
	}
	b := &Bed{prefix: fmt.Sprintf("wnB%d-%d-", os.Getpid(), made.Add(1))}
	if err := b.build(); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

func (b *Bed) build() error {
	var all, node strings.Builder
	for _, ns := range []string{"node", "pod", "back", "peer", "out", "world"} {
		fmt.Fprintf(&all, "netns add %s%s\n", b.prefix, ns)
		b.onEnd(func() { _ = exec.Command("ip", "netns", "del", b.prefix+ns).Run() })
	}
	if err := b.ip("", all.String()); err != nil {
		return err
	}
	for _, h := range homes {
		fmt.Fprintf(&node, "link add to-%s type veth peer name eth0 netns %s%s\n", h.ns, b.prefix, h.ns)
	}
	fmt.Fprintf(&node, "link set lo up\n")
	for _, h := range homes {
		both(&node, "addr add %s dev to-"+h.ns+"", netip.MustParsePrefix(h.gate+"/30"))
		fmt.Fprintf(&node, "link set to-%s up\n", h.ns)
	}
	both(&node, "addr add %s dev to-peer", netip.MustParsePrefix(NodeIP+"/32"), netip.MustParsePrefix(NodeAlt+"/32"))
	if err := b.sysctls(); err != nil {
		return err
	}
	if err := b.ip("node", node.String()); err != nil {
		return err
	}
	for _, h := range homes {
		var there strings.Builder
		fmt.Fprintf(&there, "link set lo up\n")
		both(&there, "addr add %s dev eth0", netip.MustParsePrefix(h.own+"/30"))
		fmt.Fprintf(&there, "link set eth0 up\n")
		for _, text := range h.nets {
			both(&there, "route add local %s dev lo", netip.MustParsePrefix(text))
		}
		via(&there, "default", h.gate)
		if err := b.ip(h.ns, there.String()); err != nil {
			return err
		}
	}
	var back strings.Builder
	for _, h := range homes {
		for _, text := range h.nets {
			if h.ns != "world" {
				via(&back, text, h.own)
			}
		}
		if h.ns == "world" {
			via(&back, "default", h.own)
		}
	}
	return b.ip("node", back.String())
}

// both writes a line of ip(8) for a network and for its twin.
func both(w *strings.Builder, line string, nets ...netip.Prefix) {
	for _, p := range nets {
		fmt.Fprintf(w, line+"\n", p)
		fmt.Fprintf(w, line+"\n", TwinPrefix(p))
	}
}

// via routes a network and its twin.
func via(w *strings.Builder, to, gate string) {
	g := netip.MustParseAddr(gate)
	twin := to
	if p, err := netip.ParsePrefix(to); err == nil {
		twin = TwinPrefix(p).String()
	}
	fmt.Fprintf(w, "route add %s via %s\nroute add %s via %s\n", to, g, twin, Twin(g))
}

// sysctls: routers route; no duplicate address detection; sources may be any address that is routed here; and refusals
// are not rationed, which would make them look like drops.
func (b *Bed) sysctls() error {
	for _, ns := range []string{"node", "pod", "back", "peer", "out", "world"} {
		args := []string{"net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0", "net.ipv6.conf.all.accept_dad=0",
			"net.ipv6.conf.default.accept_dad=0", "net.ipv6.ip_nonlocal_bind=1", "net.ipv4.icmp_ratemask=0", "net.ipv6.icmp.ratelimit=0"}
		if ns == "node" {
			args = append(args, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
		}
		if out, err := b.Command(ns, append([]string{"sysctl", "-qw"}, args...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("sysctl in %s: %w: %s", ns, err, out)
		}
	}
	return nil
}

// ip runs lines of ip(8) in a namespace, in the machine's own if ns is empty.
func (b *Bed) ip(ns, lines string) error {
	args := []string{"-batch", "-"}
	if ns != "" {
		args = append([]string{"-n", b.prefix + ns}, args...)
	}
	cmd := exec.Command("ip", args...)
	cmd.Stdin = strings.NewReader(lines)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("ip in %q: %w: %s\n%s", ns, err, out.String(), lines)
	}
	return nil
}

// Address gives the node an address and its twin (on lo), or takes them.
func (b *Bed) Address(add bool, a netip.Addr) error {
	verb := map[bool]string{true: "add", false: "del"}[add]
	return b.ip("node", fmt.Sprintf("addr %s %s/32 dev lo\naddr %s %s/128 dev lo\n", verb, a, verb, Twin(a)))
}

func (b *Bed) onEnd(fn func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ends = append(b.ends, fn)
}

// Close stops the servers and removes the namespaces. Processes in them are their starters' to end, before.
func (b *Bed) Close() {
	b.mu.Lock()
	ends := b.ends
	b.ends = nil
	b.mu.Unlock()
	for i := len(ends) - 1; i >= 0; i-- {
		ends[i]()
	}
}

// Path is the file that stands for a namespace.
func (b *Bed) Path(ns string) string { return "/run/netns/" + b.prefix + ns }

// Command prepares a program to run in a namespace. The process is the program itself: ip netns exec executes it.
func (b *Bed) Command(ns string, argv ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", b.prefix + ns}, argv...)...)
}

// In runs fn on a thread in a namespace; the thread is not used again.
func (b *Bed) In(ns string, fn func()) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		h, err := netns.GetFromName(b.prefix + ns)
		if err == nil {
			err = netns.Set(h)
			h.Close()
		}
		if err == nil {
			fn()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("enter namespace %s: %w", ns, err)
	}
	return nil
}

// Listen listens in a namespace until Close; the listener works from anywhere.
func (b *Bed) Listen(ns, addr string) (l net.Listener, err error) {
	if e := b.In(ns, func() { l, err = net.Listen("tcp", addr) }); e != nil {
		return nil, e
	}
	if err == nil {
		b.onEnd(func() { l.Close() })
	}
	return l, err
}

// Dial connects from an address, in the namespace that has it.
func (b *Bed) Dial(proto string, from netip.Addr, to netip.AddrPort, within time.Duration) (c net.Conn, err error) {
	if e := b.In(Home(from), func() { c, err = dial(proto, from, to, within) }); e != nil {
		return nil, e
	}
	return c, err
}

// dial connects in the namespace of the calling thread.
func dial(proto string, from netip.Addr, to netip.AddrPort, within time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: within}
	if from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
		if proto == "udp" {
			d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
		}
	}
	return d.Dial(proto, to.String())
}
