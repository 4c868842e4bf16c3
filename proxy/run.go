package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"worknode/fault"
	"worknode/kernel/nft"
	"worknode/kube"
	"worknode/proxy/act"
	"worknode/proxy/addr"
	"worknode/proxy/api"
	"worknode/proxy/config"
	"worknode/proxy/dns"
	"worknode/proxy/leftover"
	"worknode/proxy/state"
	"worknode/proxy/sysctl"
	"worknode/task"
)

// Options are what the proxy is run with.
type Options struct {
	Config *config.Loaded
	Reload <-chan *config.Loaded // newer ones, as the file changes; nil: none will come
	Master string                // URL of the API server, instead of the kubeconfig's
	Flags  map[string]string     // as given, for /flagz

	// Log applies the configuration's wishes for logs; Verbose sets one of them while the proxy runs. Either may be nil.
	Log     func(config.Logging)
	Verbose func(string) (string, error)

	SharedTables bool // other programs may change our tables: what they change is repaired afterwards

	DNS DNS
}

// DNS has the proxy answer names of Services, on a node without a cluster. The zero value: it does not.
type DNS struct {
	Address    netip.AddrPort
	Domain     string
	ResolvConf string // where the resolvers for other names are listed; empty: there are none
}

// Run keeps the kernel's tables in step with the API until ctx ends, in the network namespace of the process. The tables
// stay when it returns: see Cleanup. Errors are those of the start; whatever goes wrong later is retried. A change of the
// configuration comes into force at once; where that takes another connection to the API or another name of the node, the
// parts start again, as after a crash, and find the tables as they left them.
func Run(ctx context.Context, o Options) error {
	for {
		client, err := connect(&o)
		if err != nil {
			return err
		}
		node, err := o.Config.NodeName()
		if err != nil {
			return err
		}
		next, err := run(ctx, o, api.Cluster{Client: client, Node: node}, client)
		if err != nil || next == nil {
			return err
		}
		slog.Info("starting again with the new configuration", "source", next.Source)
		o.Config = next
	}
}

// RunFeed is Run with another source of Services and EndpointSlices, and without an API.
func RunFeed(ctx context.Context, o Options, feed api.Feed) error {
	_, err := run(ctx, o, feed, nil)
	return err
}

// connect prepares the client; without a kubeconfig that is the pod's own account.
func connect(o *Options) (*kube.Client, error) {
	file := o.Config.ClientConnection.Kubeconfig
	rest, err := clientcmd.BuildConfigFromFlags(o.Master, file)
	if err != nil {
		return nil, fault.Hint(fmt.Errorf("kubeconfig %q: %w", file, err), "name one with clientConnection.kubeconfig or --kubeconfig, or run as a pod with a service account")
	}
	rest.UserAgent = "worknode-proxy"
	return kube.For(rest)
}

// run is one life of the proxy's parts. next is the configuration to start again with; nil when ctx has ended.
func run(ctx context.Context, o Options, feed api.Feed, client *kube.Client) (next *config.Loaded, err error) {
	only, err := alone()
	if err != nil {
		return nil, err
	}
	defer only.Close()
	conn, err := nft.Open()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	flows, err := nft.Open() // its own socket: a long dump must not hold up a transaction
	if err != nil {
		return nil, err
	}
	defer flows.Close()
	p, err := newProcess(o, act.Open(conn, o.SharedTables))
	if err != nil {
		return nil, err
	}
	if err := p.loop.claim(); err != nil {
		return nil, err
	}

	tasks := task.New(ctx)
	defer tasks.Stop()
	p.start(tasks, client)
	tasks.Go("questions", func(ctx context.Context) { p.answer(ctx, only) })
	tasks.Go("watch addresses", p.loop.watchAddresses)
	if !p.loop.tables.Owned() {
		slog.Info("the service tables are open to other programs (owned ones need kernel 6.9): if others change them, they are repaired afterwards")
		tasks.Go("watch tables", p.loop.watchTables)
	}
	tasks.Go("feed", func(ctx context.Context) { feed.Follow(ctx, p.receive(p.loop.delta(ctx))) })
	tasks.Go("clean conntrack", func(ctx context.Context) { p.loop.cleaner.run(ctx, flows) })
	if o.DNS.Address.IsValid() && client != nil {
		zone := dns.NewZone(o.DNS.Domain)
		tasks.Go("follow names", func(ctx context.Context) { zone.Follow(ctx, client) })
		tasks.Go("DNS", func(ctx context.Context) { dns.NewServer(zone, o.DNS.ResolvConf).Run(ctx, o.DNS.Address) })
	}
	ended := make(chan struct{})
	tasks.Go("loop", func(ctx context.Context) { defer close(ended); p.loop.run(ctx) })
	for {
		select {
		case <-ended:
			return nil, nil
		case err := <-p.fatal:
			return nil, err
		case now := <-o.Reload:
			if !p.reload(ctx, now) {
				return now, nil
			}
		}
	}
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

// Init does what needs more rights than the proxy itself: it sets the kernel's limits. Errors name what could not be set.
func Init(c *config.Loaded) error {
	changed, err := sysctl.Kernel.Apply(limits(c, c.Effective("").BeLiberal))
	for _, s := range changed {
		slog.Info("kernel setting changed", "name", s.Name, "was", s.Was, "now", s.Now)
	}
	return err
}

// Cleanup removes our tables and all that kube-proxy may have left, in the network namespace of the calling thread. Safe
// to repeat; nothing to remove is no error. Errors: Denied while a proxy still runs there.
func Cleanup(ctx context.Context) error {
	only, err := alone()
	if err != nil {
		return fmt.Errorf("proxy clean-up: %w", err)
	}
	defer only.Close()
	errs := []error{leftover.IPTables(ctx)}
	conn, err := nft.Open()
	switch {
	case fault.Is(err, fault.Unsupported): // no nftables, no table
	case err != nil:
		errs = append(errs, err)
	default:
		defer conn.Close()
		for _, table := range []string{act.TableName, "kube-proxy"} {
			for _, fam := range []state.Family{state.V4, state.V6} {
				if _, err := act.Remove(conn, fam, table); err != nil {
					errs = append(errs, fmt.Errorf("proxy clean-up: %w", err))
				}
			}
		}
	}
	return errors.Join(errs...)
}
