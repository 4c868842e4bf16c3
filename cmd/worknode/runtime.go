package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"worknode/fault"
	"worknode/runtime"
	"worknode/runtime/config"
)

// runtimeFlags are the flags of `worknode runtime`. A flag that is given overrides the configuration file.
type runtimeFlags struct {
	file   string
	values config.Config
	stall  time.Duration
	given  *pflag.FlagSet
	copies map[string]func(to *config.Config)
}

// bind defines the flags on f.
func (r *runtimeFlags) bind(f *pflag.FlagSet) {
	r.given, r.values, r.copies = f, config.Default(), map[string]func(*config.Config){}
	f.StringVar(&r.file, "config", "", "configuration file (TOML), with FILE.d/*.toml beside it; flags override it")
	text := func(name string, field func(*config.Config) *string, usage string) {
		own := field(&r.values)
		f.StringVar(own, name, *own, usage)
		r.copies[name] = func(to *config.Config) { *field(to) = *own }
	}
	list := func(name string, field func(*config.Config) *[]string, usage string) {
		own := field(&r.values)
		f.StringSliceVar(own, name, *own, usage)
		r.copies[name] = func(to *config.Config) { *field(to) = *own }
	}
	text("root", func(c *config.Config) *string { return &c.Root }, "images and writable layers")
	text("run", func(c *config.Config) *string { return &c.Run }, "live records and sockets; best on tmpfs")
	text("socket", func(c *config.Config) *string { return &c.Socket }, "CRI socket")
	text("monitor", func(c *config.Config) *string { return &c.Monitor }, "path of worknode-monitor (default: beside this binary)")
	text("cgroup", func(c *config.Config) *string { return &c.Cgroup }, "cgroup of pods whose creator names none")
	text("images", func(c *config.Config) *string { return &c.Images.Folder }, "folder of image tar files to import, watched")
	list("certs-dir", func(c *config.Config) *[]string { return &c.Images.CertsDirs }, "folders of HOST/hosts.toml for registries")
	list("pinned-image", func(c *config.Config) *[]string { return &c.Images.Pinned }, "images that are not to be cleaned up: names, or patterns such as registry.example/base/*")
	text("cni-conf-dir", func(c *config.Config) *string { return &c.Network.CNIConfDir }, "configurations of the CNI plugins that connect pods; the first by name is in force, changes too")
	list("cni-bin-dir", func(c *config.Config) *[]string { return &c.Network.CNIBinDirs }, "folders of CNI plugins (repeatable)")
	text("bridge", func(c *config.Config) *string { return &c.Network.Bridge }, "serve pods with the built-in bridge of this name, not by CNI plugins")
	text("pod-cidr", func(c *config.Config) *string { return &c.Network.PodCIDR }, "addresses of the pods on the built-in bridge")
	list("cdi-dir", func(c *config.Config) *[]string { return &c.Devices.CDIDirs }, "folders of CDI specifications (repeatable), the last wins")
	text("nri-socket", func(c *config.Config) *string { return &c.NRI.Socket }, "where NRI plugins connect (default: /var/run/nri/nri.sock, or nri.sock in another run folder); - for nowhere")
	text("metrics", func(c *config.Config) *string { return &c.Metrics.Address }, "address for /metrics and /healthz over HTTP")
	text("log-format", func(c *config.Config) *string { return &c.Log.Format }, "text or json")
	text("log-level", func(c *config.Config) *string { return &c.Log.Level }, "debug, info, warn or error")
	f.DurationVar(&r.stall, "pull-progress-timeout", time.Duration(r.values.Images.ProgressTimeout), "give a pull up that gets no byte for so long")
	r.copies["pull-progress-timeout"] = func(to *config.Config) { to.Images.ProgressTimeout = config.Duration(r.stall) }
}

// effective is the configuration that holds: defaults, the file, its drop-ins, flags.
func (r *runtimeFlags) effective() (config.Config, error) {
	c, err := config.Load(r.file)
	if err != nil {
		return c, err
	}
	r.given.VisitAll(func(f *pflag.Flag) { // Visit knows only what a set itself has parsed, and subcommands parse in theirs
		if set := r.copies[f.Name]; set != nil && f.Changed {
			set(&c)
		}
	})
	if r.stall <= 0 {
		return c, fault.New(fault.Invalid, "--pull-progress-timeout %s: want a time above zero", r.stall)
	}
	return c, c.Check()
}

// runtimeCommand is `worknode runtime`: CRI over a unix socket.
func runtimeCommand() *cobra.Command {
	var flags runtimeFlags
	var cleanup bool
	c := &cobra.Command{
		Use: "runtime", Short: "Run the container runtime (CRI v1 over a unix socket)", Args: cobra.NoArgs,
		Long: `Runs the container runtime: CRI v1 over a unix socket. docs/runtime.md tells about the configuration file.

SIGHUP reloads what can follow the configuration file; SIGUSR1 writes what all goroutines do into the run folder.`,
		RunE: func(c *cobra.Command, _ []string) error {
			daemon("runtime")
			have, err := flags.effective()
			if err != nil {
				return err
			}
			level := &slog.LevelVar{}
			_ = level.UnmarshalText([]byte(have.Log.Level)) // checked
			log("runtime", have.Log.Format, level)
			o, err := runtime.FromConfig(have)
			if err != nil {
				return err
			}
			if cleanup {
				return runtime.Cleanup(c.Context(), o)
			}
			updates := make(chan runtime.Options)
			o.Updates = updates
			go flags.listen(c.Context(), have, level, updates) // ends with the context, like the process
			return runtime.Run(c.Context(), o)
		},
	}
	c.AddCommand(&cobra.Command{
		Use: "config", Short: "Print the configuration that holds: defaults, --config, its drop-ins, flags", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			have, err := flags.effective()
			if err != nil {
				return err
			}
			text, err := have.Text()
			if err == nil {
				_, err = os.Stdout.Write(text)
			}
			return err
		},
	})
	flags.bind(c.PersistentFlags())
	c.Flags().BoolVar(&cleanup, "cleanup", false, "end all containers, remove all that the runtime made on the machine except images, and exit")
	return c
}

// listen serves the process's signals.
func (r *runtimeFlags) listen(ctx context.Context, have config.Config, level *slog.LevelVar, updates chan<- runtime.Options) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGUSR1)
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-signals:
			if s == syscall.SIGUSR1 {
				runtime.DumpGoroutines(have.Run)
				continue
			}
		}
		want, err := r.effective()
		if err != nil {
			slog.Error("configuration not reloaded, the old one holds", "error", err)
			continue
		}
		live, restart := config.Changed(have, want)
		if len(restart) > 0 {
			slog.Warn("changed in the configuration, and takes a restart of the runtime, which containers do not notice", "fields", strings.Join(restart, " "))
		}
		o, err := runtime.FromConfig(want)
		if err != nil {
			slog.Error("configuration not reloaded, the old one holds", "error", err)
			continue
		}
		slog.Info("reload of the configuration", "changed", strings.Join(live, " "))
		_ = level.UnmarshalText([]byte(want.Log.Level))
		select {
		case updates <- o:
		case <-ctx.Done():
			return
		}
		have.Log.Level, have.Images = want.Log.Level, want.Images // what cannot follow is named each time
	}
}
