// Package config reads the runtime's configuration file: TOML, because its users' other runtimes and hosts.toml speak it,
// and because each fault in it can be told with file, line and field. It decides nothing and opens nothing but the files.
//
// A file is FILE and then FILE.d/*.toml in the order of their names: a later one replaces the values that it names, whole
// lists too, and tables grow together. An unknown key is an error, lest a slip of the pen is found after a year.
//
// The fields' comments are what docs/runtime.md tells; a test compares the two.
package config

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"worknode/fault"
)

// Config is all that a runtime is told. Fields marked live follow the file while the runtime runs (SIGHUP); the others
// need a restart, which no container notices.
type Config struct {
	Root         string `toml:"root"`          // durable: images and writable layers
	Run          string `toml:"run"`           // live records and sockets, best on tmpfs
	Socket       string `toml:"socket"`        // CRI socket
	Monitor      string `toml:"monitor"`       // path of worknode-monitor; empty: beside this binary
	Cgroup       string `toml:"cgroup"`        // cgroup of pods whose creator names none
	CgroupDriver string `toml:"cgroup-driver"` // cgroupfs; what kubelets are told to use
	Streaming    string `toml:"streaming"`     // address of the server for exec, attach and port-forward; port 0 takes any

	Handlers []Handler `toml:"handlers"` // other OCI runtimes that a RuntimeClass can name; without one the native executor is it

	Log     Log     `toml:"log"`
	Images  Images  `toml:"images"`
	Network Network `toml:"network"`
	Devices Devices `toml:"devices"`
	NRI     NRI     `toml:"nri"`
	Metrics Metrics `toml:"metrics"`
	Debug   Debug   `toml:"debug"`
}

// Handler is an OCI runtime with the command line of runc: runc, crun, youki, runsc.
type Handler struct {
	Name string   `toml:"name"` // what a RuntimeClass calls it
	Path string   `toml:"path"` // its program
	Root string   `toml:"root"` // where it keeps its records; empty: below run
	Args []string `toml:"args"` // options in front of its command
}

// Log says how the process reports.
type Log struct {
	Level  string `toml:"level" live:"yes"` // debug, info, warn or error
	Format string `toml:"format"`           // text or json, on stderr
}

// Images is about where images come from and which are welcome.
type Images struct {
	Folder          string   `toml:"folder"`                           // folder of tar files to import, watched; empty: none
	CertsDirs       []string `toml:"certs-dirs" live:"yes"`            // folders of HOST/hosts.toml for registries, the first that knows a host wins
	ProgressTimeout Duration `toml:"pull-progress-timeout" live:"yes"` // give a pull up that gets no byte for so long
	Parallel        int      `toml:"layers-at-once"`                   // layers of one image that are unpacked at the same time, 1 to 16
	Pinned          []string `toml:"pinned" live:"yes"`                // images that are not to be cleaned up: names, or patterns such as registry.example/base/*
	Verify          []Verify `toml:"verify" live:"yes"`                // which signatures images must have; the most special rule decides
}

// Verify is the rule for images whose name begins with Scope, at whole parts: a registry, or a registry and repositories.
type Verify struct {
	Scope string   `toml:"scope"` // such as registry.example/team; empty: all images that no other rule is about
	Do    string   `toml:"do"`    // accept, reject, or signed: accept only what one of Keys has signed
	Keys  []string `toml:"keys"`  // PEM files of cosign public keys (ECDSA, RSA, Ed25519)
}

// Network is how pods are connected.
type Network struct {
	Bridge     string   `toml:"bridge"`       // serve pods with the built-in bridge of this name, not by CNI plugins
	PodCIDR    string   `toml:"pod-cidr"`     // addresses of the pods on the built-in bridge
	CNIConfDir string   `toml:"cni-conf-dir"` // configurations of the CNI plugins that connect pods; the first by name is in force, changes too
	CNIBinDirs []string `toml:"cni-bin-dirs"` // folders of CNI plugins
}

// Devices is about what containers may get of the machine's hardware.
type Devices struct {
	CDIDirs []string `toml:"cdi-dirs"` // folders of CDI specifications, read for each container that names a device; a later one wins
}

// NRI is about plugins of the Node Resource Interface, which may adjust containers.
type NRI struct {
	Enabled             bool     `toml:"enabled"`              // let plugins in
	Socket              string   `toml:"socket"`               // where plugins connect; empty: /var/run/nri/nri.sock if run is the default, else nri.sock there; "-": nowhere
	PluginDir           string   `toml:"plugin-dir"`           // plugins to start: programs named INDEX-NAME
	ConfigDir           string   `toml:"plugin-config-dir"`    // what those are told: INDEX-NAME.conf or NAME.conf
	RegistrationTimeout Duration `toml:"registration-timeout"` // how long a plugin may take to register
	RequestTimeout      Duration `toml:"request-timeout"`      // how long a plugin may take to answer; then it is dropped
}

// Metrics is about numbers for others.
type Metrics struct {
	Address string `toml:"address"` // serve /metrics and /healthz here over HTTP, without log-in; empty: only on the debug socket
}

// Debug is a window for root.
type Debug struct {
	Socket string `toml:"socket"` // unix socket with /debug/pprof, /metrics and /healthz; empty: Run/debug.sock; "-": none
}

// Default is what holds where no file and no flag says otherwise.
func Default() Config {
	return Config{
		Root: "/var/lib/worknode/runtime", Run: "/run/worknode/runtime", Socket: "/run/worknode/runtime.sock",
		Cgroup: "/worknode", CgroupDriver: "cgroupfs", Streaming: "127.0.0.1:0",
		Log: Log{Level: "info", Format: "text"},
		Images: Images{
			CertsDirs: []string{"/etc/containerd/certs.d", "/etc/docker/certs.d"}, ProgressTimeout: Duration(time.Minute), Parallel: 3,
		},
		Network: Network{PodCIDR: "10.88.0.0/16", CNIConfDir: "/etc/cni/net.d", CNIBinDirs: []string{"/opt/cni/bin"}},
		Devices: Devices{CDIDirs: []string{"/etc/cdi", "/var/run/cdi"}},
		NRI: NRI{
			Enabled: true, PluginDir: "/opt/nri/plugins", ConfigDir: "/etc/nri/conf.d",
			RegistrationTimeout: Duration(5 * time.Second), RequestTimeout: Duration(2 * time.Second),
		},
	}
}

// Duration is a time such as "90s" or "5m".
type Duration time.Duration

func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || v <= 0 {
		return fmt.Errorf("%q: want a time such as 90s or 5m", text)
	}
	*d = Duration(v)
	return nil
}

// Check says what cannot be, each with its field.
func (c *Config) Check() error {
	bad := func(field string, value any, want string) error {
		return fault.New(fault.Invalid, "field %s: %v: want %s", field, value, want)
	}
	var level slog.Level
	switch {
	case c.Root == "" || c.Run == "":
		return bad("root, run", c.Root+", "+c.Run, "the names of two folders")
	case c.CgroupDriver != "cgroupfs":
		return bad("cgroup-driver", c.CgroupDriver, "cgroupfs, which works below a delegated systemd unit too; others are not built in")
	case level.UnmarshalText([]byte(c.Log.Level)) != nil:
		return bad("log.level", c.Log.Level, "debug, info, warn or error")
	case !slices.Contains([]string{"text", "json"}, c.Log.Format):
		return bad("log.format", c.Log.Format, "text or json")
	case c.Images.Parallel < 1 || c.Images.Parallel > 16:
		return bad("images.layers-at-once", c.Images.Parallel, "1 to 16")
	case len(c.Network.Bridge) > 15:
		return bad("network.bridge", c.Network.Bridge, "at most 15 bytes")
	}
	if p, err := netip.ParsePrefix(c.Network.PodCIDR); err != nil || !p.Addr().Is4() || p.Bits() > 28 {
		return bad("network.pod-cidr", c.Network.PodCIDR, "an IPv4 prefix of at most 28 bits, such as 10.88.0.0/16")
	}
	for field, address := range map[string]string{"streaming": c.Streaming, "metrics.address": c.Metrics.Address} {
		if _, _, err := net.SplitHostPort(address); err != nil && address != "" {
			return bad(field, address, "an address and a port, such as 127.0.0.1:0")
		}
	}
	return c.checkRules()
}

func (c *Config) checkRules() error {
	seen := map[string]bool{}
	for i, v := range c.Images.Verify {
		field := fmt.Sprintf("images.verify[%d]", i)
		switch {
		case seen[v.Scope]:
			return fault.New(fault.Invalid, "field %s.scope: a second rule for %q", field, v.Scope)
		case strings.HasSuffix(v.Scope, "/") || strings.ContainsAny(v.Scope, "*@ "):
			return fault.New(fault.Invalid, "field %s.scope: %q: want a registry or a registry and repositories, such as registry.example/team", field, v.Scope)
		case v.Do == "signed" && len(v.Keys) == 0:
			return fault.New(fault.Invalid, "field %s.keys: without a key no image can be signed", field)
		case v.Do != "signed" && len(v.Keys) > 0:
			return fault.New(fault.Invalid, "field %s.keys: only do = \"signed\" uses keys, and it says %q", field, v.Do)
		case !slices.Contains([]string{"signed", "accept", "reject"}, v.Do):
			return fault.New(fault.Invalid, "field %s.do: %q: want signed, accept or reject", field, v.Do)
		}
		for _, k := range v.Keys {
			if !filepath.IsAbs(k) {
				return fault.New(fault.Invalid, "field %s.keys: %q: want an absolute path", field, k)
			}
		}
		seen[v.Scope] = true
	}
	return nil
}
