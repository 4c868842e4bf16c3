// Package net tests the service proxy as its users meet it: a real kernel, real packets between network namespaces,
// a real proxy process that can be killed. Only the API is played: objects are written to the proxy's standard input.
//
//	pod  10.1.0.2 ─┐
//	               ├─ node 10.1.x.1, 192.0.2.1 (proxy) ── ext 192.0.2.2 (default route)
//	back 10.1.1.2 ─┘
//
// back answers on all of 10.1.128.0/17, so that endpoints cost nothing: the address that a connection arrives at tells
// which endpoint was chosen.
package net

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

const (
	nodeIP  = "192.0.2.1"
	podIP   = "10.1.0.2"
	extIP   = "192.0.2.2"
	podCIDR = "10.1.0.0/16"
	wait    = 10 * time.Second // for anything to happen; generous, the machine may be busy
)

// lab is one node with its neighbours. Each test has its own.
type lab struct {
	t      testing.TB
	prefix string
}

var labs int

func newLab(t testing.TB) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("these tests make network namespaces and need root")
	}
	labs++
	l := &lab{t: t, prefix: fmt.Sprintf("wnF%d-%d-", os.Getpid(), labs)}
	for _, ns := range []string{"node", "pod", "back", "ext"} {
		l.ip("netns", "add", l.prefix+ns)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", l.prefix+ns).Run() })
		l.ip("-n", l.prefix+ns, "link", "set", "lo", "up")
	}
	l.wire("pod", podIP, "10.1.0.1")
	l.wire("back", "10.1.1.2", "10.1.1.1")
	l.wire("ext", extIP, nodeIP)
	l.ip("-n", l.prefix+"back", "route", "add", "local", "10.1.128.0/17", "dev", "lo")
	l.ip("-n", l.prefix+"node", "route", "add", "10.1.128.0/17", "via", "10.1.1.2")
	l.ip("-n", l.prefix+"node", "route", "add", "default", "via", extIP)
	l.sysctl("net.ipv4.ip_forward=1")
	return l
}

func (l *lab) sysctl(kv string) {
	out, err := exec.Command("ip", "netns", "exec", l.prefix+"node", "sysctl", "-qw", kv).CombinedOutput()
	if err != nil {
		l.t.Fatalf("sysctl %s: %v %s", kv, err, out)
	}
}

// wire connects ns to the node; the node is its gateway.
func (l *lab) wire(ns, addr, gateway string) {
	l.ip("-n", l.prefix+"node", "link", "add", "to-"+ns, "type", "veth", "peer", "name", "eth0", "netns", l.prefix+ns)
	l.ip("-n", l.prefix+"node", "addr", "add", gateway+"/24", "dev", "to-"+ns)
	l.ip("-n", l.prefix+"node", "link", "set", "to-"+ns, "up")
	l.ip("-n", l.prefix+ns, "addr", "add", addr+"/24", "dev", "eth0")
	l.ip("-n", l.prefix+ns, "link", "set", "eth0", "up")
	l.ip("-n", l.prefix+ns, "route", "add", "default", "via", gateway)
}

func (l *lab) ip(args ...string) {
	l.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		l.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// in runs fn on a thread in a namespace of the lab. The thread is not used again.
func (l *lab) in(ns string, fn func()) {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		h, err := netns.GetFromName(l.prefix + ns)
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
		l.t.Fatalf("enter namespace %s: %v", ns, err)
	}
}

// serve answers every connection in back, on every address: "<address it arrived at> <address it came from>\n".
func (l *lab) serve(ns string, port int) {
	l.in(ns, func() {
		ln, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", port))
		if err != nil {
			l.t.Errorf("listen in %s: %v", ns, err)
			return
		}
		l.t.Cleanup(func() { ln.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					fmt.Fprintf(c, "%s %s\n", c.LocalAddr(), c.RemoteAddr())
					buf := make([]byte, 512)
					for { // then an echo, for connections that live on
						n, err := c.Read(buf)
						if err != nil {
							return
						}
						c.Write(buf[:n])
					}
				}()
			}
		}()
	})
}

// serveUDP answers every datagram to addr with addr.
func (l *lab) serveUDP(ns, addr string) {
	l.in(ns, func() {
		c, err := net.ListenPacket("udp4", addr)
		if err != nil {
			l.t.Errorf("listen in %s: %v", ns, err)
			return
		}
		l.t.Cleanup(func() { c.Close() })
		go func() {
			buf := make([]byte, 64)
			for {
				_, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				c.WriteTo([]byte(addr), from)
			}
		}()
	})
}

// dial connects from a namespace; the connection works from anywhere.
func (l *lab) dial(ns, network, to string, timeout time.Duration) (c net.Conn, err error) {
	l.in(ns, func() { c, err = (&net.Dialer{Timeout: timeout}).Dial(network, to) })
	return c, err
}

// reached is what the server saw of a connection.
type reached struct{ endpoint, client netip.AddrPort }

// connect makes one TCP connection and asks who answered.
func (l *lab) connect(ns, to string) (r reached, err error) {
	c, err := l.dial(ns, "tcp4", to, 2*time.Second)
	if err != nil {
		return r, err
	}
	defer c.Close()
	return hello(c)
}

func hello(c net.Conn) (r reached, err error) {
	c.SetReadDeadline(time.Now().Add(2 * time.Second))
	buf := make([]byte, 128)
	n, err := c.Read(buf)
	if err != nil {
		return r, err
	}
	a, b, _ := strings.Cut(strings.TrimSpace(string(buf[:n])), " ")
	if r.endpoint, err = netip.ParseAddrPort(a); err == nil {
		r.client, err = netip.ParseAddrPort(b)
	}
	return r, err
}

// eventually repeats ask until it is satisfied; what tells what was missing.
func eventually(t testing.TB, what string, ask func() error) {
	t.Helper()
	deadline := time.Now().Add(wait)
	for {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-time.After(2 * time.Millisecond)
	}
}

// list runs `nft list ruleset` in the node.
func (l *lab) list() string {
	l.t.Helper()
	var out bytes.Buffer
	cmd := exec.Command("ip", "netns", "exec", l.prefix+"node", "nft", "list", "ruleset")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		l.t.Fatalf("nft list ruleset: %v\n%s", err, out.String())
	}
	return out.String()
}
