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
	static, ranges, err := o.parse()
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

	l := newLoop(o, ranges, api.NewHealth(time.Now()))
	l.families = append(l.families, &family{fam: state.V4, table: act.Open(conn, state.V4, static)})
	if err := l.claim(); err != nil {
		return err
	}

	tasks := task.New(ctx)
	defer tasks.Stop()
	if err := serve(tasks, o, l); err != nil {
		return err
	}
	tasks.Go("watch addresses", l.watchAddresses)
	if t := l.families[0].table; !t.Owned() {
		slog.Info("this kernel has no owned nftables tables (they came with 6.9): if others change the service table, it is repaired afterwards")
		tasks.Go("watch table", func(ctx context.Context) { l.watchTable(ctx, t) })
	}
	tasks.Go("feed", func(ctx context.Context) { feed.Follow(ctx, l.delta(ctx)) })
	tasks.Go("clean conntrack", func(ctx context.Context) { l.cleaner.run(ctx, flows) })
	l.run(tasks.Context())
	return nil
}

func serve(tasks *task.Group, o Options, l *loop) error {
	if o.HealthzAddr != "" {
		at, err := api.Listen("healthz", o.HealthzAddr)
		if err != nil {
			return err
		}
		tasks.Go("healthz", func(ctx context.Context) { api.Serve(ctx, at, l.health.Handler(&l.metrics)) })
	}
	if o.MetricsAddr != "" {
		at, err := api.Listen("metrics", o.MetricsAddr)
		if err != nil {
			return err
		}
		tasks.Go("metrics", func(ctx context.Context) { api.Serve(ctx, at, api.MetricsHandler(l.health, &l.metrics)) })
	}
	return nil
}

// parse checks the options; errors name the option and the value.
func (o *Options) parse() (act.Static, []netip.Prefix, error) {
	static := act.Static{MasqueradeAll: o.MasqueradeAll, MarkBit: 14}
	if o.MasqueradeBit != nil {
		if static.MarkBit = *o.MasqueradeBit; static.MarkBit < 0 || static.MarkBit > 31 {
			return static, nil, fault.New(fault.Invalid, "proxy: masquerade bit %d: must be 0 to 31", static.MarkBit)
		}
	}
	for _, s := range o.ClusterCIDR {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			return static, nil, fault.New(fault.Invalid, "proxy: cluster CIDR %q: %w", s, err)
		}
		static.Pods = append(static.Pods, p)
	}
	var ranges []netip.Prefix
	for _, s := range o.NodePortAddresses {
		switch s {
		case "primary":
			continue
		case "all":
			ranges = append(ranges, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"))
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return static, nil, fault.New(fault.Invalid, "proxy: node port addresses %q: %w", s, err)
		}
		ranges = append(ranges, p)
	}
	if len(ranges) > 0 && len(ranges) < len(o.NodePortAddresses) && o.NodePortAddresses[0] == "primary" {
		return static, nil, fault.New(fault.Invalid, "proxy: node port addresses %v: primary stands alone", o.NodePortAddresses)
	}
	return static, ranges, nil
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

// watchTable has the loop look at the kernel when somebody else has changed a table.
func (l *loop) watchTable(ctx context.Context, t *act.Table) {
	err := t.Watch(ctx, func() {
		select {
		case l.foreign <- struct{}{}:
		default: // it will look anyway
		}
	})
	if err != nil {
		slog.Warn("changes of the service table by others are only found by the regular check", "err", err)
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
		if err := act.Remove(conn, fam); err != nil {
			errs = append(errs, fmt.Errorf("proxy clean-up: %w", err))
		}
	}
	return errors.Join(errs...)
}
