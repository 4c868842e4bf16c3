package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/nft"
	"worknode/kube"
	"worknode/proxy/act"
	"worknode/proxy/addr"
	"worknode/proxy/api"
	"worknode/proxy/state"
	"worknode/task"
)

// Options configure the proxy. The zero value of each field is a sensible default, but Kubeconfig and NodeName.
type Options struct {
	Kubeconfig string // file; Run alone needs it
	NodeName   string // whose endpoints are local, and whose addresses are "primary"

	ClusterCIDR       []string // where pods live; without any, ClusterIP connections keep their source
	NodePortAddresses []string // CIDRs, or "primary" (the default), or "all"
	MasqueradeAll     bool     // also for connections from pods to ClusterIPs
	MasqueradeBit     *int     // of the packet mark; 14 if nil

	SharedTables bool // other programs may change our tables: what they change is repaired afterwards

	HealthzAddr string // host:port, empty: none
	MetricsAddr string // host:port, empty: none

	// CheckPeriod is how often the kernel's table is compared with what it should be; ten minutes if zero.
	CheckPeriod time.Duration
}

// Run keeps the kernel's table in step with the API until ctx ends, in the network namespace of the process. The
// table stays when it returns: see Cleanup. Errors are those of the start; whatever goes wrong later is retried.
func Run(ctx context.Context, o Options) error {
	if o.NodeName == "" {
		return fault.New(fault.Invalid, "proxy: no node name")
	}
	client, err := kube.Open(o.Kubeconfig, "worknode-proxy")
	if err != nil {
		return err
	}
	return RunFeed(ctx, o, api.Cluster{Client: client, Node: o.NodeName})
}

// RunFeed is Run with another source of Services and EndpointSlices.
func RunFeed(ctx context.Context, o Options, feed api.Feed) error {
	settings, err := o.parse()
	if err != nil {
		return err
	}
	only, err := alone()
	if err != nil {
		return err
	}
	defer only.Close()
	conn, err := nft.Open()
	if err != nil {
		return err
	}
	defer conn.Close()
	flows, err := nft.Open() // its own socket: a long dump must not hold up a transaction
	if err != nil {
		return err
	}
	defer flows.Close()

	health, metrics := api.NewHealth(time.Now()), &api.Metrics{}
	l := newLoop(settings, hooks(health, metrics), act.Open(conn, o.SharedTables))
	if err := l.claim(); err != nil {
		return err
	}

	tasks := task.New(ctx)
	defer tasks.Stop()
	if err := serve(tasks, o, health, metrics); err != nil {
		return err
	}
	tasks.Go("watch addresses", l.watchAddresses)
	if !l.tables.Owned() {
		slog.Info("the service tables are open to other programs (owned ones need kernel 6.9): if others change them, they are repaired afterwards")
		tasks.Go("watch tables", l.watchTables)
	}
	tasks.Go("feed", func(ctx context.Context) { feed.Follow(ctx, l.delta(ctx)) })
	tasks.Go("clean conntrack", func(ctx context.Context) { l.cleaner.run(ctx, flows) })
	l.run(tasks.Context())
	return nil
}

// hooks counts what the loop does.
func hooks(health *api.Health, m *api.Metrics) state.Hooks {
	return state.Hooks{
		Received: func(r state.Received) {
			switch r.Kind {
			case "Service":
				m.ServiceChanges.Add(1)
			case "EndpointSlice":
				m.EndpointChanges.Add(1)
			default:
				return
			}
			health.Queued(r.At)
		},
		Committed: func(c state.Commit) {
			health.Done(c.Done)
			m.LastSync.Store(c.Done.UnixNano())
			m.Sync.Observe(c.Done.Sub(c.Began))
			m.Transactions.Add(uint64(c.Transactions))
			m.Elements.Add(uint64(c.Elements))
			m.Replaced.Add(uint64(c.Replaced))
			m.Drift.Add(uint64(c.Drift))
			m.Services.Store(int64(c.AllServices))
			m.Slices.Store(int64(c.AllSlices))
			for _, t := range c.Triggers {
				m.Program.Observe(max(0, c.Done.Sub(t)))
			}
		},
		Failed: func(error) { m.SyncFailures.Add(1) },
		Node:   func(n state.Node) { health.SetEligible(n.Eligible) },
		Cleaned: func(c state.Cleaned) {
			m.FlowsDeleted.Add(uint64(c.Deleted))
			if c.Err != nil {
				m.FlowFailures.Add(1)
			}
		},
	}
}

func serve(tasks *task.Group, o Options, health *api.Health, m *api.Metrics) error {
	if o.HealthzAddr != "" {
		at, err := api.Listen("healthz", o.HealthzAddr)
		if err != nil {
			return err
		}
		tasks.Go("healthz", func(ctx context.Context) { api.Serve(ctx, at, health.Handler(m)) })
	}
	if o.MetricsAddr != "" {
		at, err := api.Listen("metrics", o.MetricsAddr)
		if err != nil {
			return err
		}
		tasks.Go("metrics", func(ctx context.Context) { api.Serve(ctx, at, api.MetricsHandler(health, m)) })
	}
	return nil
}

// parse checks the options; errors name the option and the value.
func (o *Options) parse() (state.Settings, error) {
	s := state.DefaultSettings(o.NodeName)
	s.MasqueradeAll, s.FullSync = o.MasqueradeAll, o.CheckPeriod
	if o.MasqueradeBit != nil {
		if s.MasqueradeBit = *o.MasqueradeBit; s.MasqueradeBit < 0 || s.MasqueradeBit > 31 {
			return s, fault.New(fault.Invalid, "proxy: masquerade bit %d: must be 0 to 31", s.MasqueradeBit)
		}
	}
	var pods []netip.Prefix
	for _, text := range o.ClusterCIDR {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return s, fault.New(fault.Invalid, "proxy: cluster CIDR %q: %w", text, err)
		}
		pods = append(pods, p.Masked())
	}
	if len(pods) > 0 {
		s.LocalPods = []state.LocalPods{{By: state.ByClusterCIDR, CIDRs: pods}}
	}
	for _, text := range o.NodePortAddresses {
		switch text {
		case "primary":
			continue
		case "all":
			s.NodePorts.Ranges = append(s.NodePorts.Ranges, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"))
			continue
		}
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return s, fault.New(fault.Invalid, "proxy: node port addresses %q: %w", text, err)
		}
		s.NodePorts.Ranges = append(s.NodePorts.Ranges, p)
	}
	s.NodePorts.Primary = len(s.NodePorts.Ranges) == 0
	if len(s.NodePorts.Ranges) > 0 && len(s.NodePorts.Ranges) < len(o.NodePortAddresses) && o.NodePortAddresses[0] == "primary" {
		return s, fault.New(fault.Invalid, "proxy: node port addresses %v: primary stands alone", o.NodePortAddresses)
	}
	return s, nil
}

// watchAddresses reports the node's addresses to the loop, and starts anew when the kernel's messages were lost.
func (l *loop) watchAddresses(ctx context.Context) {
	for ctx.Err() == nil {
		err := addr.Watch(ctx, func(now addr.Local) {
			select {
			case l.local <- now:
			case <-ctx.Done():
			}
		})
		if err == nil {
			return
		}
		slog.Warn("address watch broke, starting it again", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// watchTables has the loop look at the kernel when somebody else has changed our tables.
func (l *loop) watchTables(ctx context.Context) {
	err := l.tables.Watch(ctx, func() {
		select {
		case l.foreign <- struct{}{}:
		default: // it will look anyway
		}
	})
	if err != nil {
		slog.Warn("changes of the service tables by others are only found by the regular check", "err", err)
	}
}

// alone makes sure that one proxy works in a network namespace. An abstract socket belongs to the namespace and goes
// with its process, however that ends. Errors: Denied if there is another.
func alone() (io.Closer, error) {
	l, err := net.Listen("unix", "@worknode-proxy")
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fault.Hint(fault.New(fault.Denied, "another worknode proxy runs in this network namespace"), "end it first; `ss -xlp | grep worknode-proxy` shows it")
	}
	return l, err
}

// Cleanup removes the tables from the network namespace of the calling thread. Safe to repeat; nothing to remove is
// no error. Errors: Denied while a proxy still runs there.
func Cleanup() error {
	only, err := alone()
	if err != nil {
		return fmt.Errorf("proxy clean-up: %w", err)
	}
	defer only.Close()
	conn, err := nft.Open()
	if err != nil {
		if fault.Is(err, fault.Unsupported) {
			return nil // no nftables, no table
		}
		return err
	}
	defer conn.Close()
	var errs []error
	for _, fam := range []state.Family{state.V4, state.V6} {
		if _, err := act.Remove(conn, fam, act.TableName); err != nil {
			errs = append(errs, fmt.Errorf("proxy clean-up: %w", err))
		}
	}
	return errors.Join(errs...)
}
