package localhost

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"worknode/proxy/state"
)

var loop4 = netip.MustParseAddr("127.0.0.1")

func start(t *testing.T) *Server {
	t.Helper()
	s := New()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { s.Run(ctx); close(ended) }()
	t.Cleanup(func() { stop(); <-ended })
	return s
}

// echo answers with what it got, once the client has said that it was all.
func echo(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b, _ := io.ReadAll(c)
				_, _ = c.Write(b)
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// dial connects to a loopback port as soon as it listens (or, with open false, stops to).
func dial(t *testing.T, port uint16, open bool) *net.TCPConn {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		c, err := net.Dial("tcp4", netip.AddrPortFrom(loop4, port).String())
		if err == nil && open {
			return c.(*net.TCPConn)
		}
		if err == nil {
			c.Close()
		} else if !open {
			return nil
		}
	}
	t.Fatalf("port %d: open should be %v", port, open)
	return nil
}

func TestConnectionIsCarriedBothWaysAndHalfClosed(t *testing.T) {
	s := start(t)
	to, port := echo(t), freePort(t)
	web := Port{state.Name{Namespace: "ns", Name: "web"}, port, to}
	s.Update([]netip.Addr{loop4, netip.IPv6Loopback()}, []Port{web})
	c := dial(t, port, true)
	data := make([]byte, 3<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = c.Write(data); _ = c.CloseWrite() }()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes back, %v", len(got), err)
	}
	if v4, v6 := s.Listening(); v4 != 1 || v6 != 0 { // the Service has no IPv6 side
		t.Errorf("%d and %d listeners", v4, v6)
	}
	// The Service moves: new connections go to the new place, and when it is gone the port closes.
	kept := dial(t, port, true)
	web.Via = echo(t)
	s.Update([]netip.Addr{loop4}, []Port{web})
	dial(t, port, true).Close()
	s.Update([]netip.Addr{loop4}, nil)
	dial(t, port, false)
	if _, err := kept.Write([]byte("still here")); err != nil { // an open connection goes on, as in the kernel
		t.Fatal(err)
	}
	_ = kept.CloseWrite()
	if got, err := io.ReadAll(kept); string(got) != "still here" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestServiceThatDoesNotAnswerResets(t *testing.T) {
	s := start(t)
	port := freePort(t)
	s.Update([]netip.Addr{loop4}, []Port{{state.Name{Name: "down"}, port, netip.AddrPortFrom(loop4, freePort(t))}})
	c := dial(t, port, true)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

func TestPortInUseCountsAndOthersAreServed(t *testing.T) {
	s := start(t)
	holder, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	taken := holder.Addr().(*net.TCPAddr).AddrPort().Port()
	to, port := echo(t), freePort(t)
	ports := []Port{{state.Name{Name: "a"}, taken, to}, {state.Name{Name: "b"}, port, to}}
	s.Update([]netip.Addr{loop4}, ports)
	dial(t, port, true).Close()
	if s.Failures4.Load() == 0 {
		t.Error("the failure is not counted")
	}
	holder.Close()
	s.Update([]netip.Addr{loop4}, ports)
	dial(t, taken, true).Close()
}
