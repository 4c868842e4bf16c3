// Web is the front end of the example: it counts visits in Redis and says which replica answered.
// It shows what a program in a pod gets from the node: an environment, files that change under it, a scratch folder,
// probes that ask it, and a polite end.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// lame is how long a pod that was told to end still answers: the proxies need a moment to hear that it leaves.
const lame = 300 * time.Millisecond

type web struct {
	replica  string
	greeting string // file from a ConfigMap
	scratch  string // folder that lives as long as the pod
	redis    *redis
	leaving  atomic.Bool
}

func main() {
	slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stdout, nil)))
	if err := run(); err != nil {
		slog.Error("ended", "err", err)
		os.Exit(1)
	}
}

func run() error {
	w := &web{
		replica:  env("POD_NAME", "unknown"),
		greeting: env("GREETING_FILE", "/etc/web/greeting"),
		scratch:  env("SCRATCH", os.TempDir()),
		redis: newRedis(net.JoinHostPort(env("REDIS_SERVICE_HOST", "redis"), env("REDIS_SERVICE_PORT", "6379")),
			os.Getenv("REDIS_PASSWORD")),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", w.page)
	mux.HandleFunc("GET /visit", w.visit)
	mux.HandleFunc("GET /healthz", func(out http.ResponseWriter, _ *http.Request) { fmt.Fprintln(out, "ok") })
	mux.HandleFunc("GET /ready", w.ready)
	server := &http.Server{Addr: ":" + env("PORT", "8080"), Handler: logged(mux), ReadHeaderTimeout: 5 * time.Second}

	told, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	slog.Info("serving", "address", server.Addr, "replica", w.replica, "redis", w.redis.address)
	select {
	case err := <-ended:
		return err
	case <-told.Done():
	}
	w.leaving.Store(true)
	select {
	case err := <-ended:
		return err
	case <-time.After(lame):
	}
	bye, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	slog.Info("leaving")
	return server.Shutdown(bye)
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// answer is what one visit comes to.
type answer struct {
	Greeting string `json:"greeting"`
	Replica  string `json:"replica"`
	Visits   int64  `json:"visits"`
	Stale    bool   `json:"stale,omitempty"` // Redis is away, the count is the last this replica saw
}

func (w *web) count(ctx context.Context) (answer, error) {
	a := answer{Replica: w.replica, Greeting: "Hello"}
	// Read each time: the node puts a changed ConfigMap into the file while we run.
	if text, err := os.ReadFile(w.greeting); err == nil {
		a.Greeting = strings.TrimSpace(string(text))
	}
	last := filepath.Join(w.scratch, "last-count")
	n, err := w.redis.call(ctx, "INCR", "visits")
	if err != nil {
		a.Stale = true
		if text, err := os.ReadFile(last); err == nil {
			a.Visits, _ = strconv.ParseInt(string(text), 10, 64)
		}
		return a, err
	}
	if a.Visits, err = strconv.ParseInt(n, 10, 64); err != nil {
		return a, fmt.Errorf("redis counts %q: %w", n, err)
	}
	if err := os.WriteFile(last, []byte(n), 0o644); err != nil {
		slog.Warn("count not kept for bad times", "err", err)
	}
	return a, nil
}

func (w *web) visit(out http.ResponseWriter, r *http.Request) {
	a, err := w.count(r.Context())
	out.Header().Set("Content-Type", "application/json")
	w.status(out, err)
	json.NewEncoder(out).Encode(a)
}

var page = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>worknode example</title>
<style>body{font:1.2rem/1.6 system-ui,sans-serif;max-width:34rem;margin:15vh auto;padding:0 1rem}b{font-variant-numeric:tabular-nums}</style>
<h1>{{.Greeting}}</h1>
<p>You are visitor <b>{{.Visits}}</b>{{if .Stale}} or later: the counter is away{{end}}.</p>
<p>Answered by <b>{{.Replica}}</b>. Reload to meet another replica.</p>
`))

func (w *web) page(out http.ResponseWriter, r *http.Request) {
	a, err := w.count(r.Context())
	out.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.status(out, err)
	page.Execute(out, a)
}

func (w *web) status(out http.ResponseWriter, err error) {
	out.Header().Set("Cache-Control", "no-store")
	out.Header().Set("X-Replica", w.replica)
	if w.leaving.Load() {
		out.Header().Set("Connection", "close")
	}
	if err != nil {
		slog.Error("visit not counted", "err", err)
		out.WriteHeader(http.StatusServiceUnavailable)
	}
}

// ready answers the readiness probe: no traffic for a replica that cannot count.
func (w *web) ready(out http.ResponseWriter, r *http.Request) {
	err := errors.New("leaving")
	if !w.leaving.Load() {
		_, err = w.redis.call(r.Context(), "PING")
	}
	if err != nil {
		http.Error(out, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(out, "ready")
}

// logged writes one line a request, probes excepted.
func logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		seen := &seen{out, http.StatusOK}
		start := time.Now()
		next.ServeHTTP(seen, r)
		if r.URL.Path != "/healthz" && r.URL.Path != "/ready" {
			slog.Info("request", "method", r.Method, "path", r.URL.Path, "from", r.RemoteAddr, "status", seen.code,
				"took", time.Since(start).Round(time.Microsecond).String())
		}
	})
}

type seen struct {
	http.ResponseWriter
	code int
}

func (s *seen) WriteHeader(code int) {
	s.code = code
	s.ResponseWriter.WriteHeader(code)
}
