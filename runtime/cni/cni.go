// Package cni connects sandboxes by whatever CNI plugins are installed. It reads the first configuration of a folder and
// watches it, runs the plugins (spec 1.1: ADD, DEL, STATUS, GC), and keeps a record of each attachment from before its ADD
// until a DEL has succeeded: plugins hold addresses on disk, so what a crash or a reboot cuts short must still be given back.
//
// It makes no namespace and no host port, and it has no network of its own: without a configuration it says so.
package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"worknode/fault"
	"worknode/step"
	"worknode/task"
)

// Interface is the device that a pod sees.
const Interface = "eth0"

// How long plugins may take when Config does not say. Some wait in ADD for an agent that restarts.
const (
	defaultAddLimit = 100 * time.Second
	defaultDelLimit = 60 * time.Second
)

// Config is where things are.
type Config struct {
	ConfDir  string        // configurations, the first by name is in force; empty: none is read, attachments can only be ended
	BinDirs  []string      // plugins, the first folder that has one wins
	State    string        // durable folder for the records of attachments and their results
	AddLimit time.Duration // for one ADD of a whole list; 0: 100 s
	DelLimit time.Duration // for one DEL, STATUS or GC; 0: 60 s
}

// Result is a sandbox's place in the network.
type Result struct {
	Network string       // name of the configuration
	IPs     []netip.Addr // the primary one first, as the plugins order them
	Ports   bool         // a plugin of the list serves host ports, nobody else must
}

// Network runs the plugins. Its methods may be called from several goroutines, for one sandbox in turn.
type Network struct {
	conf  Config
	lib   *libcni.CNIConfig
	tasks *task.Group

	gate sync.RWMutex // GC takes it alone: what it does not hear of is taken for dead

	mu       sync.Mutex
	current  *config          // in force; nil: none
	bad      error            // why what the folder says now is not in force
	health   error            // what STATUS said last
	podCIDRs []string         // of this node, as the cluster gave them
	late     map[string]*late // DELs to repeat
	gcDue    bool             // GC follows the first round of late DELs
	changed  chan struct{}    // capacity one: another configuration is in force
	due      chan struct{}    // capacity one: late has news
}

// Open reads the configuration and starts watching it. A missing or bad one is no error: Ready tells.
func Open(c Config) (*Network, error) {
	if c.AddLimit == 0 {
		c.AddLimit = defaultAddLimit
	}
	if c.DelLimit == 0 {
		c.DelLimit = defaultDelLimit
	}
	if err := os.MkdirAll(filepath.Join(c.State, "attachments"), 0o700); err != nil {
		return nil, fault.New(fault.Denied, "CNI records: %w", err)
	}
	n := &Network{
		conf: c, lib: libcni.NewCNIConfigWithCacheDir(c.BinDirs, c.State, runner{&version.PluginDecoder{}}), tasks: task.New(context.Background()),
		late: map[string]*late{}, changed: make(chan struct{}, 1), due: make(chan struct{}, 1),
	}
	if text, err := os.ReadFile(n.podCIDRFile()); err == nil {
		n.podCIDRs = strings.Fields(string(text))
	}
	n.tasks.Go("cni-late", n.repeatLate)
	if c.ConfDir != "" {
		n.reload()
		n.tasks.Go("cni-watch", n.watch)
		n.tasks.Go("cni-status", n.watchStatus)
	}
	return n, nil
}

// Close stops watching. Attachments stay.
func (n *Network) Close() { n.tasks.Stop() }

// Ready reports what keeps pods from being connected, nil if nothing does. It runs no plugin.
func (n *Network) Ready() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.bad != nil {
		return n.bad
	}
	if n.current == nil {
		return fault.New(fault.Temporary, "this runtime reads no network configuration")
	}
	for _, p := range n.current.list.Plugins {
		if _, err := find(p.Network.Type, n.conf.BinDirs); err != nil {
			return fmt.Errorf("network %s of %s: %w", n.current.list.Name, n.current.file, err)
		}
	}
	return n.health
}

// Connects reports whether Add can be tried: some configuration is in force, be it an old one.
func (n *Network) Connects() error {
	if c, _ := n.inForce(); c != nil {
		return nil
	}
	return n.Ready()
}

// SetPodCIDR tells what subnets the cluster gave this node, for plugins that take them from the runtime (ipRanges). They
// are kept: a kubelet tells once, not again after a restart of ours.
func (n *Network) SetPodCIDR(cidrs []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(cidrs) == 0 || slices.Equal(n.podCIDRs, cidrs) {
		return
	}
	n.podCIDRs = cidrs
	next := n.podCIDRFile() + ".new"
	err := os.WriteFile(next, []byte(strings.Join(cidrs, "\n")), 0o600)
	if err == nil {
		err = os.Rename(next, n.podCIDRFile())
	}
	if err != nil {
		slog.Warn("the node's pod subnets are not known after a restart", "subnets", cidrs, "error", err)
	}
}

func (n *Network) podCIDRFile() string { return filepath.Join(n.conf.State, "pod-cidrs") }

func (n *Network) inForce() (*config, []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.current, n.podCIDRs
}

// Add connects a sandbox by the configuration in force.
// Errors: Temporary without a configuration, when a plugin hangs or says "try again"; Unknown with the plugin's words.
// After an error Del must follow: what the plugins took stays theirs until then. Crash: the record stays, and Reconcile
// ends the attachment.
func (n *Network) Add(ctx context.Context, r Request) (Result, error) {
	c, cidrs := n.inForce()
	if c == nil {
		return Result{}, n.Ready()
	}
	n.gate.RLock()
	defer n.gate.RUnlock()
	rec := newRecord(c, r, cidrs)
	hold, err := n.write(rec)
	if err != nil {
		return Result{}, err
	}
	defer hold.Close()
	step.At("CNI record written")
	defer step.At("CNI plugins have added")
	out, err := n.add(context.WithValue(ctx, holdKey{}, hold), c, rec)
	if err == nil {
		return out, nil
	}
	return Result{}, fmt.Errorf("network %s: connect sandbox %s: %w", c.list.Name, r.Sandbox, err)
}

func (n *Network) add(ctx context.Context, c *config, rec *record) (Result, error) {
	ctx, stop := context.WithTimeout(ctx, n.conf.AddLimit)
	defer stop()
	raw, err := n.lib.AddNetworkList(ctx, c.list, rec.conf())
	if err != nil {
		return Result{}, kinded(err)
	}
	ips, err := addresses(raw)
	if err != nil {
		return Result{}, err
	}
	return Result{Network: c.list.Name, IPs: ips, Ports: c.has("portMappings")}, nil
}

// addresses are those of the pod's own device, in the plugins' order.
func addresses(raw types.Result) ([]netip.Addr, error) {
	r, err := types100.NewResultFromResult(raw)
	if err != nil {
		return nil, fault.New(fault.Unknown, "the plugins' result: %w", err)
	}
	var out []netip.Addr
	for _, ip := range r.IPs {
		if ip == nil {
			continue
		}
		if i := ip.Interface; i != nil {
			if *i < 0 || *i >= len(r.Interfaces) || r.Interfaces[*i] == nil || r.Interfaces[*i].Sandbox == "" || r.Interfaces[*i].Name != Interface {
				continue
			}
		}
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			out = append(out, a.Unmap())
		}
	}
	if len(out) == 0 {
		return nil, fault.New(fault.Unknown, "the plugins' result names no address of %s", Interface)
	}
	return out, nil
}

// Del disconnects a sandbox by the configuration that connected it, whatever is in force now. netns is the sandbox's
// namespace; one that is gone is no matter. A plugin that was uninstalled meanwhile does not hold the sandbox up: its DEL
// is repeated until it is back. Repeat: safe, also for a sandbox that never was.
// Errors: as Add; the addresses are still taken then, call again or give up with Later.
func (n *Network) Del(ctx context.Context, sandbox string) error {
	rec, err := n.read(sandbox)
	if rec == nil || err != nil {
		return err
	}
	n.waitForAdd(ctx, sandbox)
	n.gate.RLock()
	defer n.gate.RUnlock()
	ctx, stop := context.WithTimeout(ctx, n.conf.DelLimit)
	defer stop()
	err = n.del(ctx, rec)
	if fault.Is(err, fault.NotFound) {
		slog.Warn("sandbox's addresses stay taken until the plugin is back", "sandbox", sandbox, "error", err)
		n.later(sandbox)
		return nil
	}
	if err != nil {
		return fmt.Errorf("network %s: disconnect sandbox %s: %w", rec.Network, sandbox, err)
	}
	n.forgetLate(sandbox)
	return nil
}

// Later leaves a DEL to the background, for a sandbox that goes whatever the plugins say.
func (n *Network) Later(sandbox string) {
	if rec, _ := n.read(sandbox); rec != nil {
		n.later(sandbox)
	}
}

// del runs the plugins of a record and, when all have succeeded, drops it. waitForAdd comes before.
func (n *Network) del(ctx context.Context, rec *record) error {
	list, err := rec.list()
	if err != nil {
		return err
	}
	rt := rec.conf()
	if _, err := os.Stat(rt.NetNS); err != nil {
		rt.NetNS = "" // spec: DEL must succeed when the namespace is gone
	}
	if err := n.lib.DelNetworkList(ctx, list, rt); err != nil {
		return kinded(err)
	}
	step.At("CNI plugins have deleted")
	defer step.At("CNI record dropped")
	return n.drop(rec.Sandbox)
}

// kinded gives a plugin's error a kind. Source: CNI spec 1.1, section 5, error codes.
func kinded(err error) error {
	var said *types.Error
	if fault.Of(err) == fault.Unknown && errors.As(err, &said) && said.Code == types.ErrTryAgainLater {
		return fault.As(fault.Temporary, err)
	}
	return err
}
