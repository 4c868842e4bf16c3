// Package api is the kubelet's HTTPS server, port 10250: what the API server asks for kubectl logs, exec, attach and
// port-forward, and what metrics collectors read. It decides nothing about pods.
//
// Read first: server.go (routes), auth.go (who may), logs.go, stream.go (exec and friends), stats.go.
package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync/atomic"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"worknode/fault"
	"worknode/kubelet/api/access"
	"worknode/kubelet/api/crilog"
	"worknode/task"
)

// Pods is what the server knows of the kubelet. The methods are called from many goroutines; nobody writes to a pod
// they return.
type Pods interface {
	List() []*v1.Pod
	// Get finds a pod; an empty uid matches any.
	Get(ns, name string, uid types.UID) (*v1.Pod, bool)
	// ContainerID names the container's current run, or the one before it, and its log file.
	// Errors: NotFound if there is no such container or no such run; the text goes to the user.
	ContainerID(pod *v1.Pod, container string, previous bool) (id, logPath string, err error)
}

// Config says where the server listens and what it shows.
type Config struct {
	Addr              string                  // host:port; port 0 takes a free one, see Server.Addr
	CertFile, KeyFile string                  // serving certificate; read anew when the files change
	Certificate       func() *tls.Certificate // instead of files: asked at every handshake
	ClientCAFile      string                  // who may call: bearers of client certificates of these authorities; likewise
	TLS               *tls.Config             // versions, suites and curves, by the configuration; nil: Go's choice from TLS 1.2

	NodeName string
	RootDir  string // the file system whose room /stats/summary shows as the node's
	Pods     Pods
	Runtime  cri.RuntimeServiceClient
	// Access says who calls and what they may do; nil: bearers of client certificates may do everything.
	Access *access.Access
	// Debugging serves exec, attach, run, port-forward and logs; else they answer 405.
	Debugging bool
	// SystemLogs serves the machine's /var/log below /logs/.
	SystemLogs bool
	// Healthy answers /healthz: nil when the kubelet works. It must not wait for the runtime or the API server.
	Healthy func() error
	// Metrics appends the kubelet's own metrics in Prometheus text format, ProbeMetrics those of probes; may be nil.
	Metrics, ProbeMetrics func(io.Writer)
	// Configz is the configuration in force, as JSON; may be nil.
	Configz func() ([]byte, error)
	// Profiling serves /debug/pprof.
	Profiling bool
}

// inFlight bounds concurrent requests, streams included: each costs some 50 KiB and descriptors.
const inFlight = 500

// Server serves one node. Make it with New.
type Server struct {
	Config
	tls   *tlsFiles
	lis   net.Listener
	tasks *task.Group
	logs  *crilog.Watcher
	exits *exits
	busy  atomic.Int64
	count counters
}

// New returns a server that does not listen yet.
func New(c Config) *Server {
	if c.Access == nil {
		c.Access = access.New(access.Config{Node: c.NodeName, AlwaysAllow: true})
	}
	return &Server{Config: c, tls: &tlsFiles{cert: c.CertFile, key: c.KeyFile, ca: c.ClientCAFile, base: c.TLS, shown: c.Certificate}}
}

// Listen opens the sockets, so that a port in use is told before anything else starts. Run calls it if needed.
func (s *Server) Listen() error {
	if _, err := s.tls.load(); err != nil {
		return fmt.Errorf("kubelet server: %w", err)
	}
	var err error
	s.lis, err = listen(s.Addr)
	return err
}

func listen(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		err = fault.Hint(fault.As(fault.Busy, err), "another kubelet or node uses this port; stop it or choose another")
	}
	if err != nil {
		return nil, fmt.Errorf("kubelet server: %w", err)
	}
	return l, nil
}

// Bound is the address that the server listens on; nil before Listen.
func (s *Server) Bound() net.Addr {
	if s.lis == nil {
		return nil
	}
	return s.lis.Addr()
}

// Run serves until ctx ends; open streams end with it.
func (s *Server) Run(ctx context.Context) error {
	if s.lis == nil {
		if err := s.Listen(); err != nil {
			return err
		}
	}
	s.tasks = task.New(ctx)
	defer s.tasks.Stop()
	s.logs = crilog.NewWatcher(s.tasks)
	s.exits = newExits(s.Runtime, s.tasks)

	srv, lis := s.serverFor(s.limit(s.routes())), s.tls.listener(s.lis)
	ended := make(chan error, 1)
	s.tasks.Go("serve "+lis.Addr().String(), func(context.Context) { ended <- srv.Serve(lis) })
	var err error
	select {
	case <-ctx.Done():
	case err = <-ended:
		err = fmt.Errorf("kubelet server: %w", err)
	}
	_ = srv.Close() // only closes listeners and connections; there is nothing to save
	return err
}

func (s *Server) serverFor(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		BaseContext:       func(net.Listener) context.Context { return s.tasks.Context() },
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       90 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          quietLog(),
	}
}

// routes is the server's map. Each path names the subresources of nodes that open it, as upstream's kubelet does.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	open := func(pattern string, h http.HandlerFunc, subs ...string) {
		mux.HandleFunc(pattern, s.guard("", subs, h))
	}

	open("GET /healthz", s.getHealthz, "healthz", "proxy")
	open("GET /healthz/{check}", s.getHealthz, "healthz", "proxy")
	open("GET /pods", s.getPods, "pods", "proxy")
	open("GET /pods/", s.getPods, "pods", "proxy")
	open("GET /runningpods/", s.getRunningPods, "pods", "proxy")
	open("GET /configz", s.getConfigz, "configz", "proxy")
	open("GET /stats/summary", s.getSummary, "stats")
	open("GET /stats/summary/", s.getSummary, "stats")
	open("GET /metrics", s.getMetrics, "metrics")
	open("GET /metrics/resource", s.getResourceMetrics, "metrics")
	open("GET /metrics/cadvisor", s.getContainerMetrics, "metrics")
	open("GET /metrics/probes", s.getProbeMetrics, "metrics")
	s.debugging(mux)
	if s.Profiling {
		open("GET /debug/pprof/", pprof.Index, "proxy")
		open("GET /debug/pprof/cmdline", pprof.Cmdline, "proxy")
		open("GET /debug/pprof/profile", pprof.Profile, "proxy")
		open("GET /debug/pprof/symbol", pprof.Symbol, "proxy")
		open("GET /debug/pprof/trace", pprof.Trace, "proxy")
	}
	open("/", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, fmt.Sprintf("%s %s: the kubelet has no such path", r.Method, r.URL.Path), http.StatusNotFound)
	}, "proxy")
	return mux
}

// debugging adds what lets people into containers. Whatever runs a command or opens a connection counts as a create, by
// whichever method it comes: the right to read nodes/proxy must not be enough for it.
func (s *Server) debugging(mux *http.ServeMux) {
	open := func(pattern, verb string, h http.HandlerFunc, subs ...string) {
		if !s.Debugging {
			h = func(w http.ResponseWriter, _ *http.Request) {
				http.Error(w, "Debug endpoints are disabled (kubelet configuration: enableDebuggingHandlers)", http.StatusMethodNotAllowed)
			}
		}
		mux.HandleFunc(pattern, s.guard(verb, subs, h))
	}
	open("GET /containerLogs/{ns}/{pod}/{container}", "", s.getLogs, "proxy")
	if s.SystemLogs {
		files := http.StripPrefix("/logs/", http.FileServer(http.Dir("/var/log")))
		open("GET /logs/", "", files.ServeHTTP, "log", "proxy")
	}
	for _, method := range []string{"GET ", "POST "} {
		open(method+"/exec/{ns}/{pod}/{container}", "create", s.exec, "proxy")
		open(method+"/exec/{ns}/{pod}/{uid}/{container}", "create", s.exec, "proxy")
		open(method+"/attach/{ns}/{pod}/{container}", "create", s.attach, "proxy")
		open(method+"/attach/{ns}/{pod}/{uid}/{container}", "create", s.attach, "proxy")
		open(method+"/portForward/{ns}/{pod}", "create", s.portForward, "proxy")
		open(method+"/portForward/{ns}/{pod}/{uid}", "create", s.portForward, "proxy")
	}
	open("POST /run/{ns}/{pod}/{container}", "create", s.run, "proxy")
	open("POST /run/{ns}/{pod}/{uid}/{container}", "create", s.run, "proxy")
	open("POST /checkpoint/{ns}/{pod}/{container}", "create", s.checkpoint, "checkpoint", "proxy")
}

// getConfigz shows the configuration in force. Source: component-base configz.
func (s *Server) getConfigz(w http.ResponseWriter, r *http.Request) {
	if s.Configz == nil {
		http.NotFound(w, r)
		return
	}
	data, err := s.Configz()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(data) // a caller that hung up wants no answer
}

func (s *Server) limit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer s.busy.Add(-1)
		if s.busy.Add(1) > inFlight {
			s.count.refused.Add(1)
			w.Header().Set("Retry-After", "1")
			http.Error(w, fmt.Sprintf("this kubelet already serves %d requests", inFlight), http.StatusTooManyRequests)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Healthz serves /healthz alone, in the clear, on addr (host:port; empty: nowhere) until the tasks stop.
func Healthz(tasks *task.Group, addr string, healthy func() error) error {
	if addr == "" {
		return nil
	}
	lis, err := listen(addr)
	if err != nil {
		return err
	}
	check := &Server{Config: Config{Healthy: healthy}, tasks: tasks}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", check.getHealthz)
	srv := check.serverFor(mux)
	tasks.Go("healthz "+lis.Addr().String(), func(ctx context.Context) {
		defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
		if err := srv.Serve(lis); ctx.Err() == nil {
			slog.Error("the health check is gone", "err", err)
		}
	})
	return nil
}

func (s *Server) getHealthz(w http.ResponseWriter, r *http.Request) {
	if s.Healthy != nil && r.PathValue("check") != "ping" {
		if err := s.Healthy(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, "ok") // a caller that hung up wants no answer
}
