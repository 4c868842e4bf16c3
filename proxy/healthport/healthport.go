// Package healthport serves the health-check node ports of Services of type LoadBalancer with externalTrafficPolicy Local:
// a load balancer asks there whether this node has endpoints of the Service, and sends elsewhere if not.
//
// Source: Kubernetes 1.37 pkg/proxy/healthcheck/service_health.go, whose answers are kept to the byte.
package healthport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"worknode/proxy/state"
	"worknode/task"
)

// Server keeps one listener for each Service and address. Update and Listen may be called from any goroutine and return
// at once; Run does the work.
type Server struct {
	healthy func() bool                          // the proxy itself
	failed  func(svc state.Name, message string) // a port cannot be served; called once for each change of the reason
	wake    chan struct{}

	mu    sync.Mutex
	want  []state.HealthPort
	addrs []netip.Addr

	// Run's own.
	tasks *task.Group
	open  map[key]*port
	said  map[state.Name]string
}

type key struct {
	service state.Name
	port    uint16
	addr    netip.Addr
}

type port struct {
	server *http.Server
	local  atomic.Int64
}

// retry is how soon a port that somebody else holds is tried again.
const retry = 5 * time.Second

// New returns a server that serves nothing until told. failed may be nil.
func New(healthy func() bool, failed func(svc state.Name, message string)) *Server {
	return &Server{healthy: healthy, failed: failed, wake: make(chan struct{}, 1), open: map[key]*port{}, said: map[state.Name]string{}}
}

// Update says which ports there are, and how many local endpoints behind each. To be called once the kernel has them too.
func (s *Server) Update(ports []state.HealthPort) {
	s.mu.Lock()
	s.want = slices.Clone(ports)
	s.mu.Unlock()
	s.poke()
}

// Listen says on which addresses; the unspecified address of a family stands for all of that family.
func (s *Server) Listen(addrs []netip.Addr) {
	s.mu.Lock()
	s.addrs = slices.Clone(addrs)
	s.mu.Unlock()
	s.poke()
}

func (s *Server) poke() {
	select {
	case s.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// Run serves until ctx ends, in the network namespace of the process, and closes all ports then.
func (s *Server) Run(ctx context.Context) {
	s.tasks = task.New(ctx)
	defer s.tasks.Wait()
	again := time.NewTimer(0)
	again.Stop()
	for {
		select {
		case <-ctx.Done():
			for _, p := range s.open {
				p.server.Close()
			}
			return
		case <-s.wake:
		case <-again.C:
		}
		if !s.apply() {
			again.Reset(retry)
		}
	}
}

// apply opens and closes what has changed; whole is false if a port could not be opened.
func (s *Server) apply() (whole bool) {
	s.mu.Lock()
	want, addrs := s.want, s.addrs
	s.mu.Unlock()
	keep := map[key]int{}
	for _, w := range want {
		for _, a := range addrs {
			keep[key{w.Service, w.Port, a}] = w.Local
		}
	}
	for k, p := range s.open { // first, so that a port can go from one Service to another
		if _, stays := keep[k]; !stays {
			p.server.Close()
			delete(s.open, k)
		}
	}
	trouble := map[state.Name]error{}
	for k, local := range keep {
		if s.open[k] == nil {
			p, err := s.listen(k)
			if err != nil {
				trouble[k.service] = errors.Join(trouble[k.service], err)
				continue
			}
			s.open[k] = p
		}
		s.open[k].local.Store(int64(local))
	}
	s.tell(want, trouble)
	return len(trouble) == 0
}

// tell reports each Service whose ports cannot be served, when the reason changes.
func (s *Server) tell(want []state.HealthPort, trouble map[state.Name]error) {
	said := map[state.Name]string{}
	for _, w := range want {
		err := trouble[w.Service]
		if err == nil {
			if s.said[w.Service] != "" {
				slog.Info("health-check node port is served again", "service", w.Service, "port", w.Port)
			}
			continue
		}
		message := fmt.Sprintf("failed to start healthcheck %q on port %d: %v", w.Service, w.Port, err)
		if said[w.Service] = message; s.said[w.Service] != message {
			slog.Error("health-check node port is not served, trying on; end what listens there", "service", w.Service, "port", w.Port, "err", err)
			if s.failed != nil {
				s.failed(w.Service, message)
			}
		}
	}
	s.said = said
}

func (s *Server) listen(k key) (*port, error) {
	network := "tcp4"
	if k.addr.Is6() {
		network = "tcp6"
	}
	at, err := net.Listen(network, netip.AddrPortFrom(k.addr, k.port).String())
	if err != nil {
		return nil, err
	}
	p := &port{}
	p.server = &http.Server{Handler: s.handler(k.service, p), ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10}
	s.tasks.Go("health-check port of "+k.service.String(), func(context.Context) { _ = p.server.Serve(at) }) // until it is closed
	return p, nil
}

func (s *Server) handler(service state.Name, p *port) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		local, healthy := p.local.Load(), s.healthy()
		h := w.Header()
		h.Set("Content-Type", "application/json")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Load-Balancing-Endpoint-Weight", strconv.FormatInt(local, 10))
		if local == 0 || !healthy {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = io.WriteString(w, body(service, local, healthy)) // the asker may be gone
	})
}

func body(service state.Name, local int64, healthy bool) string {
	return fmt.Sprintf("{\n\t\"service\": {\n\t\t\"namespace\": %q,\n\t\t\"name\": %q\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": %v\n}",
		service.Namespace, service.Name, local, healthy)
}
