package proxy

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"worknode/fault"
	"worknode/kube"
	"worknode/proxy/act"
	"worknode/proxy/config"
	"worknode/proxy/event"
	"worknode/proxy/healthport"
	"worknode/proxy/leftover"
	"worknode/proxy/localhost"
	"worknode/proxy/state"
	"worknode/proxy/sysctl"
	"worknode/proxy/web"
	"worknode/task"
)

// process is one life of the proxy: the loop, and the side rooms that hear its hooks.
type process struct {
	o     Options
	node  string
	loop  *loop
	begun bool       // the first commit is done; the loop's own
	fatal chan error // what the user wants to be the end: see bindAddressHardFail

	health     *web.Health
	metrics    *web.Metrics
	healthz    *web.Server
	pages      *web.Pages
	metricsWeb *web.Server
	ports      *healthport.Server
	local      *localhost.Server
	noExternal bool // spec.externalIPs are not served
	nodePorts  *nodePorts
	events     *event.Recorder
	tasks      *task.Group

	mu     sync.Mutex
	config *config.Loaded
	set    config.Effective
	nodes  []netip.Addr // where node ports answer
}

func newProcess(o Options, tables *act.Tables) (*process, error) {
	node, err := o.Config.NodeName()
	if err != nil {
		return nil, err
	}
	p := &process{o: o, node: node, fatal: make(chan error, 1), config: o.Config, set: o.Config.Effective(node),
		local: localhost.New(), nodePorts: newNodePorts()}
	p.noExternal = p.set.NoExternalIPs
	p.tell(o.Config)
	p.prepareKernel()
	p.loop = newLoop(p.set.Settings, p.hooks(), tables)
	var families []state.Family
	for _, f := range p.loop.families {
		families = append(families, f.fam)
	}
	p.health = web.NewHealth(families, p.set.StaleAfter)
	p.metrics = web.NewMetrics(p.health)
	p.metrics.Listeners = func(fam state.Family) (int, uint64) {
		v4, v6 := p.local.Listening()
		if fam == state.V6 {
			return v6, p.local.Failures6.Load()
		}
		return v4, p.local.Failures4.Load()
	}
	p.ports = healthport.New(p.health.Healthy, func(svc state.Name, message string) {
		p.events.Service(svc, "FailedToStartServiceHealthcheck", "Listen", "node "+p.node+" "+message)
	})
	p.healthz = web.NewServer("healthz", p.health.Handler(), func(err error) { p.serverFailed("FailedToStartProxierHealthcheck", err) })
	p.pages = &web.Pages{
		Metrics: p.metrics, Mode: func() string { return p.mode() }, Configz: func() any { return &p.current().Configuration },
		Statusz: o.Config.Gate("ComponentStatusz"), Profile: o.Config.EnableProfiling, Verbose: o.Verbose,
	}
	if o.Config.Gate("ComponentFlagz") {
		p.pages.Flags = func() map[string]string { return o.Flags }
	}
	p.metricsWeb = web.NewServer("metrics", p.pages.Handler(), func(err error) { p.serverFailed("FailedToStartMetricServer", err) })
	return p, nil
}

// start runs the side rooms. client may be nil: then there is nobody to tell events.
func (p *process) start(tasks *task.Group, client *kube.Client) {
	p.tasks = tasks
	if client != nil {
		p.events = event.New(p.node)
		p.events.Node(corev1.EventTypeNormal, "Starting", "StartKubeProxy", "")
		tasks.Go("events", func(ctx context.Context) { p.events.Run(ctx, client) })
	}
	tasks.Go("healthz", p.healthz.Run)
	tasks.Go("metrics", p.metricsWeb.Run)
	tasks.Go("health-check node ports", p.ports.Run)
	tasks.Go("node ports on loopback", p.local.Run)
	p.healthz.Address(p.config.HealthzBindAddress)
	p.metricsWeb.Address(p.config.MetricsBindAddress)
}

// tell says what a person should know of the configuration.
func (p *process) tell(c *config.Loaded) {
	if p.o.Log != nil {
		p.o.Log(c.Logging)
	}
	for _, notice := range c.Notices {
		slog.Warn("configuration", "source", c.Source, "notice", notice)
	}
}

// prepareKernel sets what connection tracking needs, and how soon the kernel may kill us. What may not be set is named;
// Services work without it.
func (p *process) prepareKernel() {
	if err := Init(p.config); err != nil {
		slog.Warn("kernel settings are not as configured; Services work all the same", "err", err)
	}
	p.set.Settings.DropInvalid = !sysctl.Kernel.Liberal()
	want := int(*p.config.OOMScoreAdj)
	if got, err := sysctl.Kernel.ProtectSelf(want); err != nil || got != want {
		slog.Debug("the kernel lets us go no lower with oom_score_adj", "want", want, "have", got, "err", err)
	}
}

func limits(c *config.Loaded, liberal bool) sysctl.Conntrack {
	ct := &c.Conntrack
	return sysctl.Conntrack{
		Max:         sysctl.Max(int(*ct.MaxPerCore), int(*ct.Min), sysctl.Kernel.Cores()),
		Established: ct.TCPEstablishedTimeout.Duration, CloseWait: ct.TCPCloseWaitTimeout.Duration,
		UDP: ct.UDPTimeout.Duration, UDPStream: ct.UDPStreamTimeout.Duration, BeLiberal: liberal,
	}
}

// hooks carries what the loop does to those who care. They run on the loop's goroutine and return at once.
func (p *process) hooks() state.Hooks {
	return state.Hooks{
		Received: func(r state.Received) { p.health.Received(r.At); p.metrics.Received(r) },
		Committed: func(c state.Commit) {
			p.health.Committed(c.Done)
			p.metrics.Committed(c)
			p.serveLocalhost()
			p.first()
		},
		Failed:        func(err error) { p.metrics.Failed(err) },
		Node:          func(n state.Node) { p.health.Node(n) },
		Health:        func(all []state.HealthPort) { p.ports.Update(all) },
		NodePortAddrs: p.nodePortAddrs,
		Trouble:       func(t state.Trouble) { p.metrics.Trouble(t); p.events.Trouble(t) },
		Cleaned:       func(c state.Cleaned) { p.metrics.Cleaned(c) },
	}
}

// first is what waits for the first commit: kube-proxy's rules may go only when ours work.
func (p *process) first() {
	if p.begun {
		return
	}
	p.begun = true
	p.tasks.Go("kube-proxy's leftovers", func(ctx context.Context) {
		if err := leftover.IPTables(ctx); err != nil && ctx.Err() == nil {
			slog.Warn("rules of kube-proxy are still there; `--cleanup` tries again", "err", err)
		}
	})
}

func (p *process) nodePortAddrs(all []netip.Addr) {
	p.mu.Lock()
	p.nodes = all
	p.nodePorts.touch()
	listen := healthAddrs(p.set.Settings.NodePorts, all)
	p.mu.Unlock()
	p.ports.Listen(listen)
}

// healthAddrs are where health-check node ports listen: where node ports answer, as one socket if that is everywhere.
func healthAddrs(at state.NodePortAddrs, all []netip.Addr) (out []netip.Addr) {
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		mine := func(a netip.Addr) bool { return state.Of(a) == state.Of(any) }
		if slices.ContainsFunc(at.Ranges, func(r netip.Prefix) bool { return r.Bits() == 0 && mine(r.Addr()) }) {
			if slices.ContainsFunc(all, mine) {
				out = append(out, any)
			}
			continue
		}
		for _, a := range all {
			if mine(a) {
				out = append(out, a)
			}
		}
	}
	return out
}

// serveLocalhost brings the listeners on loopback up to what the kernel has now.
func (p *process) serveLocalhost() {
	p.mu.Lock()
	addrs, nodes := p.set.Localhost, p.nodes
	p.mu.Unlock()
	if ports, news := p.nodePorts.list(nodes); news {
		p.local.Update(addrs, ports)
	}
}

func (p *process) serverFailed(reason string, err error) {
	p.events.Node(corev1.EventTypeWarning, reason, "StartKubeProxy", err.Error())
	if p.current().BindAddressHardFail {
		select {
		case p.fatal <- fault.Hint(err, "bindAddressHardFail makes this the end"):
		default:
		}
	}
}

func (p *process) current() *config.Loaded {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.config
}

// mode is the configuration's word, as kube-proxy has it. Everything is served by nftables.
func (p *process) mode() string {
	if m := p.current().Mode; m != "" {
		return m
	}
	return config.ModeIPTables
}

// reload takes another configuration while everything goes on. False: the parts must start again for it.
func (p *process) reload(ctx context.Context, now *config.Loaded) bool {
	node, err := now.NodeName()
	was := p.current()
	if err != nil || node != p.node || now.ClientConnection.Kubeconfig != was.ClientConnection.Kubeconfig ||
		now.EnableProfiling != was.EnableProfiling || now.Gate("ComponentFlagz") != was.Gate("ComponentFlagz") || now.Gate("ComponentStatusz") != was.Gate("ComponentStatusz") ||
		now.Gate("AllowServiceExternalIPs") != was.Gate("AllowServiceExternalIPs") {
		return false
	}
	slog.Info("configuration changed, taking it", "source", now.Source)
	p.tell(now)
	p.mu.Lock()
	p.config, p.set = now, now.Effective(node)
	p.prepareKernel()
	settings, nodes := p.set.Settings, p.nodes
	p.mu.Unlock()
	p.health.Tune(p.set.StaleAfter)
	p.healthz.Address(now.HealthzBindAddress)
	p.metricsWeb.Address(now.MetricsBindAddress)
	p.ports.Listen(healthAddrs(settings.NodePorts, nodes))
	p.nodePorts.touch()
	p.loop.Configure(ctx, settings)
	p.serveLocalhost()
	return true
}
