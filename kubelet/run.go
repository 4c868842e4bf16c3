package kubelet

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/kube"
	"worknode/kubelet/act"
	"worknode/kubelet/api"
	"worknode/kubelet/cgroups"
	"worknode/kubelet/event"
	"worknode/kubelet/logs"
	"worknode/kubelet/object"
	"worknode/kubelet/plan"
	"worknode/kubelet/probe"
	"worknode/kubelet/source"
	"worknode/kubelet/status"
	"worknode/kubelet/volume"
	"worknode/task"
	"worknode/version"
)

// Options are the kubelet's settings. Kubeconfig, NodeName and RuntimeSocket are required.
type Options struct {
	Kubeconfig    string
	NodeName      string
	NodeIPs       []string // of this node, at most one per family, the preferred first; empty: found
	RuntimeSocket string   // of the CRI, a path or unix:// address

	RootDir    string // default /var/lib/kubelet
	LogDir     string // of the pods' logs; default /var/log/pods
	LinkDir    string // of the links that log collectors read; default /var/log/containers; "-" for none
	CgroupRoot string // default /kubepods

	Address     string // of the server, default 0.0.0.0
	Port        int    // default 10250; negative: a free one
	HealthzAddr string // of a plain /healthz, such as 127.0.0.1:10248; empty: none
	ServingCert string // files, PEM; read again when they change
	ServingKey  string
	ClientCA    string // whose certificates may use the server

	ClusterDNS    []string
	ClusterDomain string
	ResolvConf    string // default /etc/resolv.conf
	MaxPods       int    // default 110
	PodPidsLimit  int64  // not positive: no bound
	PodCIDR       string // for the node object; may be empty
	Labels        map[string]string
	Profiling     bool // serve /debug/pprof
}

func (o *Options) defaults() error {
	for _, need := range []struct{ what, value string }{
		{"a kubeconfig", o.Kubeconfig}, {"the node's name", o.NodeName}, {"the container runtime's socket", o.RuntimeSocket},
	} {
		if need.value == "" {
			return fault.New(fault.Invalid, "kubelet: %s is missing", need.what)
		}
	}
	for _, d := range []struct {
		field *string
		value string
	}{
		{&o.RootDir, "/var/lib/kubelet"}, {&o.LogDir, "/var/log/pods"}, {&o.LinkDir, "/var/log/containers"},
		{&o.CgroupRoot, "/kubepods"}, {&o.Address, "0.0.0.0"}, {&o.ResolvConf, "/etc/resolv.conf"},
	} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if o.LinkDir == "-" {
		o.LinkDir = ""
	}
	if o.Port == 0 {
		o.Port = 10250
	}
	o.Port = max(o.Port, 0)
	if o.MaxPods == 0 {
		o.MaxPods = 110
	}
	return nil
}

// Run runs the kubelet until ctx ends. Containers go on running after it.
// Errors: only what keeps it from starting at all (settings, a port in use, no cgroups); what fails later is retried.
func Run(ctx context.Context, o Options) error {
	if err := o.defaults(); err != nil {
		return err
	}
	if err := os.MkdirAll(o.RootDir, 0o750); err != nil {
		return fault.Hint(fmt.Errorf("kubelet root: %w", err), "choose another directory with --root")
	}
	client, err := kube.Open(o.Kubeconfig, "worknode-kubelet/"+version.Build)
	if err != nil {
		return err
	}
	conn, err := act.Dial(o.RuntimeSocket)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tasks := task.New(ctx)
	defer tasks.Stop()

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
		Addr: net.JoinHostPort(o.Address, strconv.Itoa(o.Port)), HealthzAddr: o.HealthzAddr,
		CertFile: o.ServingCert, KeyFile: o.ServingKey, ClientCAFile: o.ClientCA,
		NodeName: o.NodeName, RootDir: o.RootDir, Pods: r, Runtime: runtime, Metrics: r.metrics, Profiling: o.Profiling,
		Healthy: func() error { return nil },
	})
	if err := server.Listen(); err != nil {
		return err
	}
	about, err := runtimeVersion(ctx, runtime, o.RuntimeSocket)
	if err != nil {
		return err
	}
	r.runtime = about.RuntimeName

	if len(o.NodeIPs) == 0 {
		if o.NodeIPs, err = addresses(); err != nil {
			return err
		}
	}
	self := openNode(o, client, runtime, images, events, server.Bound())
	r.ips = func() []string { return o.NodeIPs }
	r.space = func() plan.Load { return space(self.Allocatable()) }
	groups, err := cgroups.Open(o.CgroupRoot, cgroups.Facts{Allocatable: self.Allocatable(), PodPidsLimit: o.PodPidsLimit})
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
		Say:     r.say, Delete: r.writer.Delete, Links: o.LinkDir,
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
	tasks.Go("pods", func(ctx context.Context) { source.API(ctx, client, o.NodeName, r) })
	tasks.Go("audit", r.audit)
	tasks.Go("log rotation", logs.New(logs.Config{Running: r.runningLogs, Reopen: r.act.Reopen}).Run)
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
