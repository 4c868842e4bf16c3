package net

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/nft"
	"worknode/proxy"
)

const table = "worknode-proxy"

// dump describes the node's table without the order of slots: the endpoints of a frontend are one sorted list.
func (n *node) dump() string {
	n.t.Helper()
	var lines []string
	slots := map[string][]string{}
	n.lab.in("node", func() {
		c, err := nft.Open()
		if err != nil {
			n.t.Error(err)
			return
		}
		defer c.Close()
		sets, err := c.Sets(nft.IPv4, table)
		if err != nil && !fault.Is(err, fault.NotFound) {
			n.t.Error(err)
		}
		for _, set := range sets {
			found := []string{}
			each := func(e nft.Elem) {
				v := fmt.Sprintf("%x", e.Data)
				if e.Verdict != nil {
					v = e.Verdict.Chain
				}
				found = append(found, fmt.Sprintf("%x=%s", e.Key, v))
			}
			if err := c.Elems(nft.IPv4, table, set, func() { found = found[:0] }, each); err != nil {
				n.t.Error(err)
			}
			for _, f := range found {
				key, value, _ := strings.Cut(f, "=")
				if set == "ep" || set == "epnp" {
					front := set + " " + key[:len(key)-8]
					slots[front] = append(slots[front], value)
					continue
				}
				lines = append(lines, set+" "+f)
			}
		}
	})
	for front, to := range slots {
		slices.Sort(to)
		lines = append(lines, front+"="+strings.Join(to, ","))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// shuffle makes one random change. Services share few addresses, so frontends pass from one to another.
func (n *node) shuffle(r *rand.Rand) {
	name := fmt.Sprintf("svc-%02d", r.IntN(40))
	eps := func() (out []endpoint) {
		for range r.IntN(6) {
			ready := r.IntN(4) > 0
			out = append(out, endpoint{addr: fmt.Sprintf("10.1.130.%d", 1+r.IntN(20)), ready: &ready, local: r.IntN(2) == 0})
		}
		return out
	}
	switch r.IntN(12) {
	case 0:
		n.deleteService(name)
	case 1:
		n.deleteEndpoints(name)
	case 2, 3, 4:
		var ports []port
		for i := range 1 + r.IntN(3) {
			p := port{tcp, int32(80 + i), 0}
			if r.IntN(3) == 0 {
				p.proto = udp
			}
			if r.IntN(2) == 0 {
				p.nodePort = int32(30000 + 20*i + r.IntN(15))
			}
			ports = append(ports, p)
		}
		n.service(name, fmt.Sprintf("10.96.1.%d", r.IntN(30)), ports...)
		n.endpoints(name, 8080, eps()...)
	default:
		n.endpoints(name, 8080, eps()...)
	}
}

// sameAsFresh waits until the table equals the one of a proxy that starts from nothing with the same objects.
func (n *node) sameAsFresh() {
	n.t.Helper()
	fresh := newNode(n.t, n.o)
	fresh.services, fresh.slices = n.services, n.slices
	fresh.start()
	fresh.service("marker", "10.96.9.9", port{tcp, 1, 0}) // also in n.services, as the map is one
	n.send(line{Service: n.services["marker"]})
	for _, x := range []*node{n, fresh} {
		eventually(n.t, "the last change should arrive", func() error {
			if !strings.Contains(x.dump(), "cluster-ips 0a600909") {
				return fmt.Errorf("it has not")
			}
			return nil
		})
	}
	if got, want := n.dump(), fresh.dump(); got != want {
		n.t.Fatalf("the table differs from a fresh one.\nkernel:\n%s\nfresh:\n%s", got, want)
	}
	if len(fresh.dump()) < 100 {
		n.t.Fatalf("an empty comparison proves nothing:\n%s", fresh.dump())
	}
	n.deleteService("marker")
	fresh.kill()
}

func TestThousandRandomChangesWithKillsEqualAFreshCompile(t *testing.T) {
	n := newNode(t, options{})
	r := rand.New(rand.NewPCG(3, 4))
	n.start()
	for i := 1; i <= 1000; i++ {
		n.shuffle(r)
		switch {
		case i%100 == 50:
			n.kill() // whatever it was doing
			n.start()
		case i%250 == 0:
			n.sameAsFresh()
			n.list() // and nft prints it all
		}
	}
}

func TestRestartAdoptsWithoutLosingConnections(t *testing.T) {
	n := newNode(t, options{})
	n.serve("back", 8080)
	n.start()
	n.service("web", "10.96.0.1", port{tcp, 80, 30080})
	n.endpoints("web", 8080, up("10.1.128.1", "10.1.128.2", "10.1.128.3")...)
	n.reaches("pod", "10.96.0.1:80", "10.1.128.1", "10.1.128.2", "10.1.128.3")

	old, err := n.dial("pod", "tcp4", "10.96.0.1:80", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if _, err := hello(old); err != nil {
		t.Fatal(err)
	}
	var made, failed atomic.Int64
	var first atomic.Value
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for _, c := range []struct{ ns, to string }{{"pod", "10.96.0.1:80"}, {"ext", nodeIP + ":30080"}} {
		clients.Add(1)
		go func() {
			defer clients.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := n.connect(c.ns, c.to); err != nil {
					failed.Add(1)
					first.CompareAndSwap(nil, err.Error())
				}
				made.Add(1)
			}
		}()
	}
	before := n.dump()
	for i := range 5 {
		n.kill()
		if got := n.dump(); got != before {
			t.Fatalf("the table changed when the proxy died:\n%s\nbefore:\n%s", got, before)
		}
		n.start()
		spare := fmt.Sprintf("10.1.128.%d", 10+i) // changes arrive at once afterwards
		n.endpoints("web", 8080, up("10.1.128.1", "10.1.128.2", spare)...)
		n.reaches("pod", "10.96.0.1:80", "10.1.128.1", "10.1.128.2", spare)
		n.endpoints("web", 8080, up("10.1.128.1", "10.1.128.2", "10.1.128.3")...)
		n.reaches("pod", "10.96.0.1:80", "10.1.128.1", "10.1.128.2", "10.1.128.3")
		if !strings.Contains(n.log.String(), "service table adopted") || strings.Contains(n.log.String(), "replaced it") {
			t.Fatalf("the table was not adopted:\n%s", n.log)
		}
	}
	close(stop)
	clients.Wait()
	if failed.Load() > 0 || made.Load() < 50 {
		t.Fatalf("%d of %d connections failed, first: %v", failed.Load(), made.Load(), first.Load())
	}
	old.SetDeadline(time.Now().Add(wait))
	if _, err := old.Write([]byte("still there?")); err != nil {
		t.Fatal(err)
	}
	if k, err := old.Read(make([]byte, 64)); err != nil || k == 0 {
		t.Fatalf("the connection from before the restarts: %d bytes, %v", k, err)
	}
}

// nft runs the nft command in the node.
func (n *node) nft(args ...string) {
	n.t.Helper()
	out, err := exec.Command("ip", append([]string{"netns", "exec", n.prefix + "node", "nft"}, args...)...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("nft %v: %v %s", args, err, out)
	}
}

func TestForeignOrDamagedTableIsReplaced(t *testing.T) {
	for what, damage := range map[string]func(n *node){
		"none":          func(n *node) { n.nft("delete", "table", "ip", table) },
		"foreign":       func(n *node) { n.nft("delete", "table", "ip", table); n.nft("add", "table", "ip", table) },
		"rule gone":     func(n *node) { n.nft("flush", "chain", "ip", table, "services") },
		"chain added":   func(n *node) { n.nft("add", "chain", "ip", table, "mine") },
		"element added": func(n *node) { n.nft("add", "element", "ip", table, "cluster-ips", "{ 192.0.2.77 }") },
		"element gone":  func(n *node) { n.nft("flush", "map", "ip", table, "ep") },
	} {
		t.Run(what, func(t *testing.T) {
			n := newNode(t, options{})
			n.serve("back", 8080)
			n.start()
			n.service("web", "10.96.0.1", port{tcp, 80, 0})
			n.endpoints("web", 8080, up("10.1.128.1")...)
			n.reaches("pod", "10.96.0.1:80", "10.1.128.1")
			want := n.dump()
			n.kill()
			damage(n)
			n.start()
			n.reaches("pod", "10.96.0.1:80", "10.1.128.1")
			eventually(t, "the table should be as before", func() error {
				if got := n.dump(); got != want {
					return fmt.Errorf("it is\n%s\nwant\n%s", got, want)
				}
				return nil
			})
		})
	}
}

func TestRunningProxyKeepsOthersOut(t *testing.T) {
	n := newNode(t, options{})
	n.serve("back", 8080)
	n.start()
	n.service("web", "10.96.0.1", port{tcp, 80, 0})
	n.endpoints("web", 8080, up("10.1.128.1")...)
	n.reaches("pod", "10.96.0.1:80", "10.1.128.1")
	n.nft("flush", "ruleset") // what a firewall's start-up script does
	n.reaches("pod", "10.96.0.1:80", "10.1.128.1")

	second := &node{lab: n.lab, o: n.o}
	second.start()
	<-second.ended
	if log := second.log.String(); !strings.Contains(log, "another worknode proxy") {
		t.Errorf("a second proxy says: %s", log)
	}
	n.lab.in("node", func() {
		if err := proxy.Cleanup(t.Context()); !fault.Is(err, fault.Denied) {
			t.Errorf("clean-up under a running proxy: %v", err)
		}
	})
	n.kill()
	n.lab.in("node", func() {
		for range 2 {
			if err := proxy.Cleanup(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
	if out := n.list(); strings.TrimSpace(out) != "" {
		t.Errorf("left behind:\n%s", out)
	}
}

func TestListingIsReadable(t *testing.T) {
	n := newNode(t, options{ClusterCIDR: []string{podCIDR, "10.2.0.0/16"}})
	n.serve("back", 8080)
	n.start()
	n.service("web", "10.96.0.1", port{tcp, 80, 30080}, port{udp, 53, 0})
	n.endpoints("web", 8080, endpoint{addr: "10.1.128.1", local: true}, endpoint{addr: "10.1.128.2"})
	n.service("none", "10.96.0.2", port{tcp, 80, 30081})
	n.reaches("pod", "10.96.0.1:80", "10.1.128.1", "10.1.128.2")
	// A machine without /etc/protocols has numbers.
	out := strings.NewReplacer(" 6 . ", " tcp . ", " 17 . ", " udp . ").Replace(n.list())
	for _, want := range []string{
		"table ip worknode-proxy", "10.96.0.1 . tcp . 80 : goto c2", "10.96.0.1 . tcp . 80 . 0x00000001 : 10.1.128.",
		"tcp . 30080 : goto np-ext-all", "numgen random mod 2 map @ep", "10.96.0.2 . tcp . 80 : goto refuse",
		"ip saddr 10.1.0.0/16 return", "ip saddr 10.2.0.0/16 return", "masquerade fully-random", "10.1.128.1 . 10.1.128.1 . tcp . 8080",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the listing lacks %q:\n%s", want, out)
		}
	}
}

// BenchmarkEndpointChange is the time from an endpoint change in the API to the element in the kernel, with 1,000
// Services: the change is written to the proxy process, and the kernel's own notification ends the clock.
func BenchmarkEndpointChange(b *testing.B) {
	n := newNode(b, options{})
	n.start()
	for i := range 1000 {
		name := fmt.Sprintf("svc-%04d", i)
		n.service(name, fmt.Sprintf("10.97.%d.%d", i>>8, i&255), port{tcp, 80, 0})
		n.endpoints(name, 8080, up(fmt.Sprintf("10.1.140.%d", i%200+1), "10.1.141.1", "10.1.141.2")...)
	}
	eventually(b, "1,000 Services should be in the kernel", func() error {
		if k := strings.Count(n.dump(), "svc 0a61"); k != 1000 {
			return fmt.Errorf("%d are", k)
		}
		return nil
	})
	heard := make(chan struct{}, 1024)
	n.lab.in("node", func() {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
		}
		if err != nil {
			b.Error(err)
			return
		}
		b.Cleanup(func() { unix.Close(fd) })
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 3})
		go func() {
			buf := make([]byte, 64<<10)
			for {
				k, err := unix.Read(fd, buf)
				if err == unix.EINTR {
					continue
				}
				if err != nil {
					close(heard)
					return
				}
				for m := buf[:k]; len(m) >= 16; {
					size := int(binary.NativeEndian.Uint32(m))
					if binary.NativeEndian.Uint16(m[4:])&0xff == unix.NFT_MSG_NEWGEN {
						heard <- struct{}{}
					}
					m = m[min(len(m), (size+3)&^3):]
				}
			}
		}()
	})
	var took []time.Duration
	i := 0
	for b.Loop() {
		i++
		began := time.Now()
		n.endpoints(fmt.Sprintf("svc-%04d", i%1000), 8080, up(fmt.Sprintf("10.1.142.%d", i/1000%200+1), "10.1.141.1", "10.1.141.2")...)
		if _, ok := <-heard; !ok {
			b.Fatal("the kernel told of no change within 3 s")
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}
