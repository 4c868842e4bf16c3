// Package localhost serves node ports on this node's loopback addresses. The kernel's rules cannot: a packet that leaves a
// loopback address for another host is dropped as a martian, unless route_localnet opens a hole. So a listener takes the
// connection and makes a second one through the kernel's own rules; endpoint choice, affinity and policies are theirs.
// TCP only. Connections end with this process; all others do not. Source: KEP-6032.
package localhost

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"worknode/proxy/state"
	"worknode/task"
)

// Port is a TCP node port and where the kernel serves it.
type Port struct {
	Service  state.Name
	NodePort uint16
	Via      netip.AddrPort // an address of this node with the node port, or else the ClusterIP with the Service's port
}

// most bounds the connections at one time; more wait in the kernel's queue.
const most = 4096

const (
	dialTimeout = 5 * time.Second // upstream's
	retry       = 5 * time.Second
)

// Server keeps a listener for each port and address.
type Server struct {
	wake chan struct{}
	busy chan struct{}

	mu    sync.Mutex
	want  map[key]target
	open  map[key]*listener
	fails map[key]string

	// Failures counts listeners that could not be made, by family.
	Failures4, Failures6 atomic.Uint64
}

type key struct {
	addr netip.Addr
	port uint16
}

type target struct {
	service state.Name
	via     netip.AddrPort
}

type listener struct {
	net.Listener
	to atomic.Pointer[target]
}

// New returns a server of nothing.
func New() *Server {
	return &Server{wake: make(chan struct{}, 1), busy: make(chan struct{}, most), open: map[key]*listener{}, fails: map[key]string{}}
}

// Update says which ports are served on which loopback addresses. It returns at once; Run does the work.
// Ports of the other family than an address are not served there.
func (s *Server) Update(addrs []netip.Addr, ports []Port) {
	want := map[key]target{}
	for _, a := range addrs {
		for _, p := range ports {
			if k := (key{a, p.NodePort}); p.Via.Addr().Is4() == a.Is4() {
				want[k] = target{p.Service, p.Via}
			}
		}
	}
	s.mu.Lock()
	s.want = want
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Listening is the number of listeners of each family.
func (s *Server) Listening() (v4, v6 int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.open {
		if k.addr.Is4() {
			v4++
		} else {
			v6++
		}
	}
	return v4, v6
}

// Run serves until ctx ends, and ends all connections then.
func (s *Server) Run(ctx context.Context) {
	again := time.NewTimer(0)
	again.Stop()
	tasks := task.New(ctx)
	defer tasks.Wait()
	for {
		select {
		case <-ctx.Done():
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, l := range s.open {
				l.Close()
			}
			return
		case <-s.wake:
		case <-again.C:
		}
		if !s.apply(func(l *listener) {
			tasks.Go("node port on "+l.Addr().String(), func(ctx context.Context) { s.accept(ctx, tasks, l) })
		}) {
			again.Reset(retry)
		}
	}
}

func (s *Server) apply(serve func(*listener)) (whole bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, l := range s.open {
		if _, stays := s.want[k]; !stays {
			l.Close()
			delete(s.open, k)
		}
	}
	fails := map[key]string{}
	for k, to := range s.want {
		l := s.open[k]
		if l == nil {
			at, err := net.Listen("tcp", netip.AddrPortFrom(k.addr, k.port).String())
			if err != nil {
				s.failed(k, to, err)
				fails[k] = err.Error()
				continue
			}
			l = &listener{Listener: at}
			l.to.Store(&to)
			s.open[k] = l
			serve(l)
		}
		l.to.Store(&to)
	}
	s.fails = fails
	return len(fails) == 0
}

func (s *Server) failed(k key, to target, err error) {
	if k.addr.Is4() {
		s.Failures4.Add(1)
	} else {
		s.Failures6.Add(1)
	}
	if s.fails[k] != err.Error() {
		slog.Error("node port is not served on loopback, trying on; end what listens there, or leave localhost out of nodePortAddresses",
			"service", to.service, "err", err)
	}
}

func (s *Server) accept(ctx context.Context, tasks *task.Group, l *listener) {
	for {
		s.busy <- struct{}{}
		conn, err := l.Accept()
		if err != nil {
			<-s.busy
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			slog.Warn("connection to a node port on loopback not taken", "err", err)
			select { // out of descriptors, most likely: they come back
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		tasks.Go("connection to "+l.Addr().String(), func(ctx context.Context) {
			defer func() { <-s.busy }()
			forward(ctx, conn.(*net.TCPConn), *l.to.Load())
		})
	}
}

// forward carries one connection. Each direction closes by itself, as programs like to say "that was all I ask".
func forward(ctx context.Context, client *net.TCPConn, to target) {
	defer client.Close()
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", to.via.String())
	if err != nil {
		_ = client.SetLinger(0) // the client sees a reset, as it would from the kernel
		slog.Debug("node port on loopback: Service does not answer", "service", to.service, "via", to.via, "err", err)
		return
	}
	server := conn.(*net.TCPConn)
	defer server.Close()
	stop := context.AfterFunc(ctx, func() { client.Close(); server.Close() })
	defer stop()
	var both sync.WaitGroup
	pipe := func(to, from *net.TCPConn) {
		_, _ = io.Copy(to, from) // splice(2): the bytes stay in the kernel
		_ = to.CloseWrite()
	}
	both.Go(func() { pipe(server, client) })
	both.Go(func() { pipe(client, server) })
	both.Wait()
}
