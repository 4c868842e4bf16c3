package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	goruntime "runtime"
	rpprof "runtime/pprof"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/runtime/metrics"
	"worknode/runtime/state"
	"worknode/runtime/verify"
	"worknode/version"
)

// noSocket as the debug socket's name means that there is none.
const noSocket = "-"

// operate opens the windows for operators: the debug socket for root, and metrics for whoever may reach their address.
// A window that cannot open keeps no container from running: it is logged.
func (l *loop) operate() {
	open := http.NewServeMux()
	open.HandleFunc("GET /metrics", l.serveMetrics)
	open.HandleFunc("GET /healthz", l.serveHealth)
	if l.opt.Metrics != "" {
		l.window("metrics", "tcp", l.opt.Metrics, open)
	}
	if l.opt.Debug == noSocket {
		return
	}
	root := http.NewServeMux()
	root.Handle("/", open)
	root.HandleFunc("/debug/pprof/", pprof.Index)
	root.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	root.HandleFunc("/debug/pprof/profile", pprof.Profile)
	root.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	root.HandleFunc("/debug/pprof/trace", pprof.Trace)
	l.control(root)
	l.window("debug", "unix", l.opt.Debug, root)
}

// window serves HTTP on an address until the runtime ends.
func (l *loop) window(name, network, address string, handler http.Handler) {
	var listener net.Listener
	var err error
	if network == "unix" {
		listener, err = listen(address)
	} else {
		listener, err = net.Listen(network, address)
	}
	if err != nil {
		slog.Error("no window for operators: choose another address in the configuration", "window", name, "address", address, "error", err)
		return
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	l.tasks.Go(name+" window", func(ctx context.Context) {
		stop := context.AfterFunc(ctx, func() { server.Close() })
		defer stop()
		if err := server.Serve(listener); err != nil && !errors.Is(err, http.ErrServerClosed) {
			slog.Error("window for operators closed", "window", name, "error", err)
		}
		if network == "unix" {
			os.Remove(address)
		}
	})
}

// serveHealth answers 200 while containers can be started. The pod network is told and does not count: host-network pods,
// the one that brings the network among them, start without it.
func (l *loop) serveHealth(w http.ResponseWriter, _ *http.Request) {
	failed, network := l.Ready()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if failed != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintf(w, "runtime: %v\n", failed)
	} else {
		fmt.Fprintln(w, "ok")
	}
	if network != nil {
		fmt.Fprintf(w, "network: %v\n", network)
	}
}

func (l *loop) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", metrics.ContentType)
	out := metrics.NewWriter(w)
	l.counts.Write(out)
	l.gauges(out)
	process(out)
	_ = out.Flush() // whoever asked has gone
}

// gauges tell how much of everything there is.
func (l *loop) gauges(w *metrics.Writer) {
	boxes, containers := map[state.SandboxState]int{}, map[state.State]int{}
	for _, s := range l.store.Sandboxes() {
		boxes[s.State]++
	}
	for _, c := range l.store.Containers("") {
		containers[c.State]++
	}
	w.Head("worknode_runtime_sandboxes", "gauge", "Sandboxes by state.")
	for _, s := range []state.SandboxState{state.Ready, state.NotReady} {
		w.Value("worknode_runtime_sandboxes", float64(boxes[s]), "state", string(s))
	}
	w.Head("worknode_runtime_containers", "gauge", "Containers by state.")
	for _, s := range []state.State{state.Created, state.Running, state.Exited} {
		w.Value("worknode_runtime_containers", float64(containers[s]), "state", string(s))
	}
	up := 0.0
	if l.keeper.Up() {
		up = 1
	}
	w.Single("worknode_runtime_monitor_up", "gauge", "Whether worknode-monitor answers.", up)
	bytes, inodes := l.images.Usage()
	w.Single("worknode_runtime_images", "gauge", "Images in the store.", float64(len(l.images.List())))
	w.Single("worknode_runtime_image_bytes", "gauge", "Disk that image layers take.", float64(bytes))
	w.Single("worknode_runtime_image_inodes", "gauge", "Inodes that image layers take.", float64(inodes))
	w.Single("worknode_runtime_layers_unpacking", "gauge", "Layers that are being unpacked.", float64(l.images.Unpacking()))
}

// process tells about this process under the names that all Go programs have.
func process(w *metrics.Writer) {
	var use unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &use) == nil {
		seconds := float64(use.Utime.Nano()+use.Stime.Nano()) / float64(time.Second)
		w.Single("process_cpu_seconds_total", "counter", "CPU time of the process.", seconds)
	}
	if data, err := os.ReadFile("/proc/self/statm"); err == nil {
		var size, resident float64
		if n, _ := fmt.Sscan(string(data), &size, &resident); n == 2 {
			w.Single("process_resident_memory_bytes", "gauge", "Resident memory.", resident*float64(os.Getpagesize()))
		}
	}
	if list, err := os.ReadDir("/proc/self/fd"); err == nil {
		w.Single("process_open_fds", "gauge", "Open file descriptors.", float64(len(list)-1))
	}
	w.Single("process_start_time_seconds", "gauge", "Start of the process, in seconds since 1970.", float64(started.UnixMilli())/1000)
	w.Single("go_goroutines", "gauge", "Goroutines.", float64(goruntime.NumGoroutine()))
	var mem goruntime.MemStats
	goruntime.ReadMemStats(&mem)
	w.Single("go_memstats_heap_inuse_bytes", "gauge", "Heap in use.", float64(mem.HeapInuse))
	w.Head("worknode_build_info", "gauge", "The build that runs.")
	w.Value("worknode_build_info", 1, "version", version.Build, "kubernetes", version.Kubernetes, "go", goruntime.Version())
}

var started = time.Now()

// Called counts a CRI call.
func (l *loop) Called(method, code string, took time.Duration) {
	l.counts.Served.Add(method, code, took)
}

// DumpGoroutines writes what every goroutine does into Run/goroutines.txt, replacing the last dump, and logs where.
func DumpGoroutines(run string) {
	path := filepath.Join(run, "goroutines.txt")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err == nil {
		err = rpprof.Lookup("goroutine").WriteTo(f, 2)
		if err1 := f.Close(); err == nil {
			err = err1
		}
	}
	if err != nil {
		slog.Error("goroutines not dumped", "error", err)
		return
	}
	slog.Info("goroutines dumped", "file", path)
}

// follow takes new options while the runtime runs: what can follow does, at once; what cannot is named by whoever sends.
func (l *loop) follow(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case next := <-l.opt.Updates:
			begin := time.Now()
			err := l.adopt(next)
			l.counts.Reloads.Add("", outcome(err), time.Since(begin))
			if err != nil {
				slog.Error("new configuration refused, the old one holds", "error", err)
			} else {
				slog.Info("configuration reloaded")
			}
		}
	}
}

// adopt puts the live part of new options in force, all of it or nothing.
func (l *loop) adopt(next Options) error {
	if err := next.fill(); err != nil {
		return err
	}
	policy, err := verify.New(next.Verify)
	if err != nil {
		return err
	}
	if err := l.images.Pin(next.Pinned); err != nil {
		return err
	}
	l.policy.Store(policy)
	l.registry.Set(l.registryOptions(next))
	return nil
}

// outcome is an error's word in metrics.
func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	return strings.ReplaceAll(fault.Of(err).String(), " ", "_")
}
