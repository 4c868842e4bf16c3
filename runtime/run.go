package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"worknode/fault"
	"worknode/kernel/text"
	"worknode/runtime/act"
	"worknode/runtime/api"
	"worknode/runtime/cdi"
	"worknode/runtime/cni"
	"worknode/runtime/handler"
	"worknode/runtime/image"
	"worknode/runtime/network"
	"worknode/runtime/registry"
	"worknode/runtime/state"
	"worknode/runtime/stream"
	"worknode/runtime/verify"
	"worknode/task"
	"worknode/version"
)

// Options is all that one runtime is told. Two runtimes on a machine share none of the folders, names and subnets.
type Options struct {
	Root       string           // durable: images, writable layers
	Run        string           // on tmpfs: records, pins, the monitor's socket and log
	Socket     string           // CRI socket; empty: Run/runtime.sock
	Monitor    string           // path of worknode-monitor
	CgroupRoot string           // parent of sandboxes whose request names none; empty: /worknode
	ImageDir   string           // tar files to import, watched; empty: none
	CertsDirs  []string         // folders of HOST/hosts.toml for registries, read at each pull; nil: where other runtimes look
	Parallel   int              // layers of one image that are unpacked at the same time; zero: 3
	PullStall  time.Duration    // how long a pull may go on without a byte; zero: a minute
	Pinned     []string         // names and patterns of images that the kubelet is not to clean up
	Verify     []verify.Rule    // whose images are welcome; none: all
	Bridge     network.Config   // built-in pod network; no name: CNI plugins connect pods
	CNI        cni.Config       // empty folders: /etc/cni/net.d, /opt/cni/bin and a folder in Root
	Handlers   []handler.Config // OCI runtimes beside the native executor
	CDIDirs    []string         // folders of CDI specifications, the last wins; nil: where everybody looks
	NRI        NRI              // plugins that see and adjust containers
	Streaming  string           // address of the streaming server; empty: 127.0.0.1:0
	Metrics    string           // address for /metrics and /healthz over HTTP; empty: none
	Debug      string           // unix socket with pprof, /metrics and /healthz; empty: Run/debug.sock; "-": none
	Updates    <-chan Options   // other options while it runs; of them Pinned, Verify, CertsDirs and PullStall count
	Ready      func()           // called once when the socket answers; may be nil
}

// NRI says whether and where plugins are let in. Zero: on, at the usual places.
type NRI struct {
	Off                                 bool
	Socket                              string // empty: /var/run/nri/nri.sock for the default run folder, else nri.sock in Run; "-": none
	PluginDir, ConfigDir                string // installed plugins and their configurations; empty: none are started
	RegistrationTimeout, RequestTimeout time.Duration
}

// maxSocket is what fits into a unix socket address. Source: unix(7), sun_path.
const maxSocket = 107

// closeLimit is how long calls under way may take when ctx ends.
const closeLimit = 2 * time.Second

// Run serves CRI until ctx ends. Containers go on when it returns; the next Run finds them.
// Errors: what keeps it from serving, with the remedy; nil after ctx.
func Run(ctx context.Context, opt Options) error {
	if err := opt.fill(); err != nil {
		return err
	}
	tasks := task.New(ctx)
	defer tasks.Stop()
	l := &loop{opt: opt, tasks: tasks, lives: map[string]*life{}}
	listener, err := listen(opt.Socket)
	if err != nil {
		return err
	}
	defer os.Remove(opt.Socket)
	defer listener.Close()
	if err := l.open(ctx); err != nil {
		return err
	}
	defer l.close()
	if err := l.recover(ctx); err != nil {
		return err
	}
	l.openNRI()
	tasks.Go("monitor", func(ctx context.Context) { l.keeper.Run(ctx, l.exit) })
	l.startNRI(ctx)
	tasks.Go("configuration", l.follow)
	tasks.Go("shed", shed)
	l.operate()
	tasks.Go("streaming", func(ctx context.Context) {
		if err := l.stream.Serve(ctx); err != nil {
			slog.Error("streaming server ended, exec and attach do not work", "error", err)
		}
	})
	if opt.ImageDir != "" {
		tasks.Go("import images", l.importImages)
	}
	return l.serve(ctx, api.New(l, version.Build), listener)
}

func (o *Options) fill() error {
	if o.Root == "" || o.Run == "" {
		return fault.New(fault.Invalid, "runtime: root and run folders must be named")
	}
	if os.Geteuid() != 0 {
		return fault.Hint(fault.New(fault.Denied, "runtime: namespaces, mounts and cgroups need root"), "run it with sudo")
	}
	if o.Socket == "" {
		o.Socket = filepath.Join(o.Run, "runtime.sock")
	}
	if o.Debug == "" {
		o.Debug = filepath.Join(o.Run, "debug.sock")
	}
	if o.CgroupRoot == "" {
		o.CgroupRoot = "/worknode"
	}
	if o.Streaming == "" {
		o.Streaming = "127.0.0.1:0"
	}
	if o.CertsDirs == nil {
		o.CertsDirs = filepath.SplitList(registry.DefaultCertsDirs)
	}
	if o.CNI.ConfDir == "" {
		o.CNI.ConfDir = "/etc/cni/net.d"
	}
	if len(o.CNI.BinDirs) == 0 {
		o.CNI.BinDirs = []string{"/opt/cni/bin"}
	}
	o.NRI.Socket = o.nriSocket()
	if o.CDIDirs == nil {
		o.CDIDirs = cdi.DefaultDirs
	}
	if o.CNI.State == "" {
		o.CNI.State = filepath.Join(o.Root, "cni")
	}
	for _, p := range []*string{&o.Root, &o.Run, &o.Socket, &o.CNI.State, &o.CNI.ConfDir} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return fmt.Errorf("runtime: %w", err)
		}
		*p = abs
	}
	for _, s := range []string{o.Socket, o.monitorSocket(), o.Debug} {
		if len(s) > maxSocket {
			return fault.Hint(fault.New(fault.Invalid, "socket path %s has %d bytes, the kernel takes %d", s, len(s), maxSocket), "choose a shorter run folder")
		}
	}
	for _, dir := range []string{o.Root, o.Run} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fault.Hint(fault.New(fault.Denied, "runtime folder: %w", err), "the root and run folders must be writable")
		}
	}
	return nil
}

func (l *loop) registryOptions(o Options) registry.Options {
	read := func(n int) { l.counts.PulledBytes.Add(uint64(n)) }
	return registry.Options{CertsDirs: o.CertsDirs, Stall: o.PullStall, Agent: "worknode/" + version.Build, Read: read}
}

func (o *Options) monitorSocket() string { return filepath.Join(o.Run, "monitor.sock") }

// open brings the parts up, in the order in which they need each other.
func (l *loop) open(ctx context.Context) (err error) {
	if l.hands, err = act.Open(l.opt.Root, l.opt.Run); err != nil {
		return err
	}
	var bad []error
	if l.store, bad, err = state.Open(l.hands.Records()); err != nil {
		return err
	}
	for _, b := range bad {
		slog.Error("record lost, its object is cleaned up as unknown", "error", b)
	}
	if l.images, err = image.Open(filepath.Join(l.opt.Root, "images")); err != nil {
		return err
	}
	if l.opt.Parallel > 0 {
		l.images.LayersAtOnce(l.opt.Parallel)
	}
	if err := l.images.Pin(l.opt.Pinned); err != nil {
		return err
	}
	policy, err := verify.New(l.opt.Verify)
	if err != nil {
		return err
	}
	l.policy.Store(policy)
	l.registry = registry.New(l.registryOptions(l.opt))
	if l.net, err = openNetworks(l.opt); err != nil {
		return err
	}
	if err := l.openHandlers(); err != nil {
		return err
	}
	if l.stream, err = stream.Listen(l.opt.Streaming, l); err != nil {
		return err
	}
	l.keeper, err = act.OpenKeeper(ctx, act.KeeperConfig{
		Socket: l.opt.monitorSocket(), Binary: l.opt.Monitor, State: l.hands.MonitorState(), Log: filepath.Join(l.opt.Run, "monitor.log"),
	})
	return err
}

// close lets go of what the next start opens again. When no sandbox is left it also takes down what serves sandboxes
// only: the network, the monitor, cgroup and live folder, so that an orderly end leaves nothing behind.
func (l *loop) close() {
	empty := len(l.store.Sandboxes()) == 0
	if empty {
		ctx, stop := context.WithTimeout(context.Background(), closeLimit)
		defer stop()
		for what, err := range map[string]error{
			"monitor": l.keeper.Quit(ctx), "cgroup": l.hands.EndCgroup(l.opt.CgroupRoot),
		} {
			if err != nil {
				slog.Warn("something stays behind", "what", what, "error", err)
			}
		}
		if err := l.hands.Leave(); err != nil {
			slog.Warn("live folder stays behind", "error", err)
		}
	}
	l.net.close(empty)
	l.images.Close()
}

func (l *loop) importImages(ctx context.Context) {
	if err := os.MkdirAll(l.opt.ImageDir, 0o755); err != nil {
		slog.Error("images folder cannot be watched", "folder", l.opt.ImageDir, "error", err)
		return
	}
	if err := l.images.ImportDir(ctx, l.opt.ImageDir, nil); err != nil && ctx.Err() == nil {
		slog.Error("images folder is not watched any more", "folder", l.opt.ImageDir, "error", err)
	}
}

// listen takes the CRI socket, replacing one that nobody answers on.
// Errors: Busy if another runtime has it.
func listen(path string) (net.Listener, error) {
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, fault.Hint(fault.New(fault.Busy, "socket %s: another process answers on it", path), "stop the other runtime, or choose other root and run folders")
	}
	os.Remove(path)
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fault.New(fault.Denied, "socket's folder: %w", err)
	}
	old := unix.Umask(0o177) // nobody but root, from the first moment
	defer unix.Umask(old)
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fault.New(fault.Denied, "CRI socket: %w", err)
	}
	return l, nil
}

// afterStart is when a start, with all that it recovers, is over on any machine.
const afterStart = 2 * time.Second

// shed gives back what only the start needed.
func shed(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(afterStart):
		debug.FreeOSMemory()
		if err := text.Shed(); err != nil {
			slog.Debug("pages of the start stay", "error", err)
		}
	}
}

// serve answers until ctx ends, then lets calls under way finish for a moment.
func (l *loop) serve(ctx context.Context, server *grpc.Server, listener net.Listener) error {
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(closeLimit, server.Stop)
		defer timer.Stop()
		l.events.end()
		server.GracefulStop()
	})
	defer stop()
	slog.Info("runtime serves", "socket", l.opt.Socket)
	if l.opt.Ready != nil {
		l.opt.Ready()
	}
	if err := server.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) && ctx.Err() == nil {
		return fmt.Errorf("CRI socket %s: %w", l.opt.Socket, err)
	}
	return nil
}
