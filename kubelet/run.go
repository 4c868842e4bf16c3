package kubelet

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/kubelet/act"
	"worknode/kubelet/api"
	"worknode/kubelet/api/access"
	"worknode/kubelet/certificate"
	"worknode/kubelet/cgroups"
	"worknode/kubelet/config"
	"worknode/kubelet/event"
	"worknode/kubelet/logs"
	"worknode/kubelet/mirror"
	"worknode/kubelet/object"
	"worknode/kubelet/plan"
	"worknode/kubelet/probe"
	"worknode/kubelet/source"
	"worknode/kubelet/status"
	"worknode/kubelet/volume"
	"worknode/task"
	"worknode/version"
)

// Options are the kubelet's settings. Kubeconfig and NodeName are required.
type Options struct {
	// Config is what config.Load returned; nil: the defaults of a node without a configuration. Port zero is a free one.
	Config     *config.Configuration
	Kubeconfig string
	Bootstrap  string // kubeconfig of a credential that may only ask for a certificate; may be empty, or its file gone
	CertDir    string // of certificates that the kubelet gets for itself; default RootDir/pki
	NodeName   string
	NodeIPs    []string          // of this node, at most one per family, the preferred first; empty: found
	Labels     map[string]string // of the node object, beside those that every node has

	RootDir string // default /var/lib/kubelet
	LinkDir string // links to logs, for collectors; default /var/log/containers, "-" for none
}

func (o *Options) defaults() error {
	for _, need := range []struct{ what, value, flag string }{{"a kubeconfig", o.Kubeconfig, "--kubeconfig"}, {"the node's name", o.NodeName, "--hostname-override"}} {
		if need.value == "" {
			return fault.Hint(fault.New(fault.Invalid, "kubelet: %s is missing", need.what), "give it with %s", need.flag)
		}
	}
	if o.Config == nil {
		var err error
		if o.Config, err = config.Load(config.Sources{}); err != nil {
			return err
		}
	}
	o.RootDir, o.LinkDir = cmp.Or(o.RootDir, "/var/lib/kubelet"), cmp.Or(o.LinkDir, "/var/log/containers")
	o.CertDir = cmp.Or(o.CertDir, filepath.Join(o.RootDir, "pki"))
	if o.LinkDir == "-" {
		o.LinkDir = ""
	}
	return nil
}

// podsGroup is the cgroup of all pods. Source: KubeletConfiguration, cgroupRoot.
func (o *Options) podsGroup() string { return path.Join("/", o.Config.CgroupRoot, "kubepods") }

// Run runs the kubelet until ctx ends. Containers go on running after it.
// Errors: only what keeps it from starting at all (settings, a port in use, no cgroups); what fails later is retried.
func Run(ctx context.Context, o Options) error {
	if err := o.defaults(); err != nil {
		return err
	}
	if err := config.Machine(o.Config); err != nil {
		return err
	}
	if left := config.Unheeded(o.Config); len(left) > 0 {
		slog.Warn("settings of the kubelet configuration without effect in this version", "fields", strings.Join(left, ", "))
	}
	if err := os.MkdirAll(o.RootDir, 0o750); err != nil {
		return fault.Hint(fmt.Errorf("kubelet root: %w", err), "choose another directory with --root")
	}
	conn, err := act.Dial(o.Config.ContainerRuntimeEndpoint)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tasks := task.New(ctx)
	defer tasks.Stop()

	// From here on the process is alive, which is all that this check says: kubeadm looks before there is a certificate.
	if err := api.Healthz(tasks, healthz(o.Config), func() error { return nil }); err != nil {
		return err
	}
	client, keeper, err := certificate.Join(ctx, certificate.Node{Name: o.NodeName, Kubeconfig: o.Kubeconfig, Bootstrap: o.Bootstrap,
		Dir: o.CertDir, Rotate: o.Config.RotateCertificates, Agent: "worknode-kubelet/" + version.Build})
	if err != nil {
		return err
	}
	if keeper != nil {
		tasks.Go("client certificate", keeper.Run)
	}
	beats, err := client.Apart() // for the lease and the node's status
	if err != nil {
		return err
	}
	if len(o.NodeIPs) == 0 {
		if o.NodeIPs, err = addresses(); err != nil {
			return err
		}
	}
	serving, err := servingCertificate(tasks, o, client)
	if err != nil {
		return err
	}

	runtime, images := cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	events := event.New(client, "kubelet", o.NodeName)
	r := &room{node: o.NodeName, tasks: tasks, pods: map[types.UID]*actor{}}
	r.say = func(pod *v1.Pod, s plan.Say) {
		kind := v1.EventTypeNormal
		if s.Warning {
			kind = v1.EventTypeWarning
		}
		events.Event(event.Pod(pod, s.Container), kind, s.Reason, s.Message)
	}

	server := api.New(api.Config{
		Addr: net.JoinHostPort(o.Config.Address, strconv.Itoa(int(o.Config.Port))), Certificate: serving,
		CertFile: o.Config.TLSCertFile, KeyFile: o.Config.TLSPrivateKeyFile, ClientCAFile: o.Config.Authentication.X509.ClientCAFile,
		TLS: config.TLS(o.Config), Configz: func() ([]byte, error) { return config.JSON(o.Config) },
		NodeName: o.NodeName, RootDir: o.RootDir, Pods: r, Runtime: runtime, Metrics: r.metrics, Profiling: *o.Config.EnableProfilingHandler,
		Debugging: *o.Config.EnableDebuggingHandlers, SystemLogs: *o.Config.EnableSystemLogHandler, ProbeMetrics: r.probeMetrics,
		Access:  access.New(accessConfig(o, client)),
		Healthy: func() error { return nil },
	})
	if err := server.Listen(); err != nil {
		return err
	}
	about, err := runtimeVersion(ctx, runtime, o.Config.ContainerRuntimeEndpoint)
	if err != nil {
		return err
	}
	r.runtime = about.RuntimeName

	all := &sources{room: r, next: map[types.NamespacedName]*v1.Pod{}}
	all.mirror = mirror.New(client, o.NodeName, func(static, mirror types.UID) { r.writer.Shown(static, mirror) })
	r.left = all.left
	self := openNode(o, beats, runtime, images, events, server.Bound(), all.mirror.Registered)
	r.ips = func() []string { return o.NodeIPs }
	r.space = func() plan.Load { return space(self.Allocatable()) }
	groups, err := cgroups.Open(o.podsGroup(), groupFacts(o.Config, self.Enforced()))
	if err != nil {
		return err
	}
	facts := hostFacts(o, self, groups.V2())
	r.objects = object.New(ctx, client, r.objectChanged)
	defer r.objects.Wait()
	r.writer = status.New(ctx, client, r.written)
	r.act = &act.Act{
		Runtime: runtime, Images: images, Cgroups: groups, Objects: r.objects, Node: facts, Root: o.RootDir,
		Volumes: volume.New(volume.Config{Root: o.RootDir, Objects: r.objects, Node: facts, Now: time.Now}),
		Say:     r.say, Static: source.Static, Delete: r.writer.Delete, Links: o.LinkDir,
	}
	r.prober = probe.New(r.act.Exec, r.judged, r.unwell)

	tasks.Go("events", events.Run)
	tasks.Go("node", self.Run)
	tasks.Go("server", func(ctx context.Context) {
		if err := server.Run(ctx); err != nil && ctx.Err() == nil {
			slog.Error("the kubelet's server ended", "err", err)
		}
	})
	tasks.Go("services", r.objects.FollowServices)
	tasks.Go("probes", r.prober.Run)
	if err := r.adopt(ctx); err != nil {
		return err
	}
	slog.Info("kubelet is running", "node", o.NodeName, "runtime", about.RuntimeName+" "+about.RuntimeVersion, "found", len(r.found))
	all.follow(tasks, client, o.NodeName, o.Config)
	tasks.Go("audit", r.audit)
	tasks.Go("log rotation", logs.New(logConfig(o.Config, r)).Run)
	<-ctx.Done()
	return nil
}

// runtimeVersion waits for the container runtime to answer: it may be starting at the same time.
func runtimeVersion(ctx context.Context, runtime cri.RuntimeServiceClient, socket string) (*cri.VersionResponse, error) {
	for {
		one, cancel := context.WithTimeout(ctx, 10*time.Second)
		v, err := runtime.Version(one, &cri.VersionRequest{})
		cancel()
		if err == nil {
			return v, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		slog.Warn("waiting for the container runtime", "socket", socket, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// adopt looks at the node before the first pod is planned: the runtime's sandboxes and containers, directories, cgroups,
// marks. The runtime's events are listened to before, so that nothing is missed between.
func (r *room) adopt(ctx context.Context) error {
	listening := make(chan struct{})
	r.tasks.Go("runtime events", func(ctx context.Context) {
		first := true
		r.act.Events(ctx, r.happened, func() {
			if first {
				first = false
				close(listening)
				return
			}
			r.gap()
		})
	})
	select {
	case <-listening:
	case <-time.After(2 * time.Second): // a runtime without an event stream; the audit looks instead
	case <-ctx.Done():
	}
	for {
		found, err := r.act.World(ctx)
		if err == nil {
			r.mu.Lock()
			r.found, r.had = found, r.leftovers()
			r.mu.Unlock()
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		slog.Warn("looking what the container runtime has, trying again", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// leftovers are the pods of which the node holds something beside containers.
func (r *room) leftovers() map[types.UID]bool {
	out := map[types.UID]bool{}
	groups, err := r.act.Cgroups.List()
	if err != nil {
		slog.Warn("cgroups of pods that are gone may stay", "err", err)
	}
	for _, list := range [][]types.UID{groups, r.act.Volumes.List(), r.act.Marked()} {
		for _, uid := range list {
			out[uid] = true
		}
	}
	return out
}

// space is what the node has for pods, from its object's allocatable.
func space(r v1.ResourceList) plan.Load {
	l := plan.Load{MilliCPU: r.Cpu().MilliValue(), Memory: r.Memory().Value()}
	if n, ok := r[v1.ResourcePods]; ok {
		l.Pods = n.Value()
	}
	return l
}
