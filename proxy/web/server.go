package web

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"worknode/fault"
	"worknode/task"
)

// retry is how soon an address that somebody else holds is tried again. Source: kube-proxy, serveHealthz.
const retry = 5 * time.Second

// Server serves one handler on an address that a reload may change.
type Server struct {
	what    string
	handler http.Handler
	wanted  chan string
	failed  func(error) // the address is taken: nil to try on in silence
}

// NewServer returns a server that serves nothing until Address. failed is called when the reason for which it cannot
// listen changes; it goes on trying.
func NewServer(what string, handler http.Handler, failed func(error)) *Server {
	return &Server{what: what, handler: handler, wanted: make(chan string, 1), failed: failed}
}

// Address says where to serve, host:port; empty: nowhere. It returns at once.
func (s *Server) Address(addr string) {
	for {
		select {
		case s.wanted <- addr:
			return
		case <-s.wanted: // one that Run has not seen yet
		}
	}
}

// Run serves until ctx ends, in the network namespace of the process.
func (s *Server) Run(ctx context.Context) {
	again := time.NewTimer(0)
	again.Stop()
	tasks := task.New(ctx)
	defer tasks.Wait()
	var addr, said string
	var now *http.Server
	defer func() { stop(now) }()
	for {
		select {
		case <-ctx.Done():
			return
		case next := <-s.wanted:
			if next == addr && now != nil {
				continue
			}
			stop(now)
			addr, now = next, nil
		case <-again.C:
		}
		if addr == "" || now != nil {
			continue
		}
		at, err := net.Listen("tcp", addr)
		if err != nil {
			err = fault.Hint(fmt.Errorf("%s on %s: %w", s.what, addr, err), "end what listens there (`ss -ltnp` shows it), or choose another address")
			if err.Error() != said {
				said = err.Error()
				slog.Error("server not up, trying on", "err", err)
				if s.failed != nil {
					s.failed(err)
				}
			}
			again.Reset(retry)
			continue
		}
		if said != "" {
			said = ""
			slog.Info("server is up now", "what", s.what, "address", addr)
		}
		now = &http.Server{Handler: s.handler, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
		server := now
		tasks.Go(s.what+" on "+addr, func(context.Context) {
			if err := server.Serve(at); !errors.Is(err, http.ErrServerClosed) {
				slog.Error("server stopped", "what", s.what, "err", err)
			}
		})
	}
}

func stop(s *http.Server) {
	if s != nil {
		s.Close()
	}
}
