package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pod is what a started pod is known by.
type pod struct{ sandbox, container string }

// startPod makes a sandbox with one running container and returns how long the three calls took together.
// The request is what a kubelet sends for an ordinary pod: a pid namespace for each container.
func (n *node) startPod(ctx context.Context, network cri.NamespaceMode) (pod, time.Duration, error) {
	n.serial++
	return n.startPodAs(ctx, n.serial, network)
}

func (n *node) startPodAs(ctx context.Context, serial int, network cri.NamespaceMode) (pod, time.Duration, error) {
	return n.startPodWith(ctx, serial, network, func(*cri.ContainerConfig) {})
}

func (n *node) startPodWith(ctx context.Context, serial int, network cri.NamespaceMode, change func(*cri.ContainerConfig)) (p pod, took time.Duration, err error) {
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	logs := filepath.Join(n.dir, "logs", fmt.Sprint(serial))
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return p, 0, err
	}
	space := &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER, Network: network}
	box := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: fmt.Sprintf("pod%d", serial), Namespace: "bench", Uid: fmt.Sprintf("uid%d", serial)},
		LogDirectory: logs,
		DnsConfig:    &cri.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"svc.cluster.local"}, Options: []string{"ndots:5"}},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    n.pods + "/" + fmt.Sprintf("pod%d", serial),
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: space},
		},
	}
	if network != cri.NamespaceMode_NODE {
		box.Hostname = box.Metadata.Name
	}
	container := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "main"}, Image: &cri.ImageSpec{Image: workload}, LogPath: "main.log",
		Linux: &cri.LinuxContainerConfig{
			Resources:       &cri.LinuxContainerResources{CpuShares: 102, MemoryLimitInBytes: 64 << 20},
			SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: space, Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}},
		},
	}
	change(container)
	begin := time.Now()
	ran, err := n.cri.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: box})
	if err != nil {
		return p, 0, fmt.Errorf("RunPodSandbox: %w", err)
	}
	p.sandbox = ran.PodSandboxId
	made, err := n.cri.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.sandbox, Config: container, SandboxConfig: box})
	if err != nil {
		return p, 0, fmt.Errorf("CreateContainer: %w", err)
	}
	p.container = made.ContainerId
	if _, err := n.cri.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: p.container}); err != nil {
		return p, 0, fmt.Errorf("StartContainer: %w", err)
	}
	return p, time.Since(begin), nil
}

// startMany starts pods four at a time.
func (n *node) startMany(ctx context.Context, count int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for i := range count {
		serial := n.serial + 1 + i
		g.Go(func() error {
			_, _, err := n.startPodAs(ctx, serial, cri.NamespaceMode_NODE)
			return err
		})
	}
	n.serial += count
	return g.Wait()
}

func (n *node) removePod(ctx context.Context, sandbox string) error {
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	if _, err := n.cri.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: sandbox}); err != nil {
		return fmt.Errorf("StopPodSandbox: %w", err)
	}
	if _, err := n.cri.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: sandbox}); err != nil {
		return fmt.Errorf("RemovePodSandbox: %w", err)
	}
	return nil
}

// removeAll removes every pod, whoever started it.
func (n *node) removeAll(ctx context.Context) error {
	list, err := n.cri.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for _, s := range list.Items {
		g.Go(func() error { return n.removePod(ctx, s.Id) })
	}
	return g.Wait()
}

// execTrue runs `true` in a container and returns how long it took.
func (n *node) execTrue(ctx context.Context, container string) (time.Duration, error) {
	begin := time.Now()
	r, err := n.cri.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: container, Cmd: []string{"/bin/true"}, Timeout: 30})
	if err != nil {
		return 0, fmt.Errorf("ExecSync: %w", err)
	}
	if r.ExitCode != 0 {
		return 0, fmt.Errorf("ExecSync of true: exit code %d", r.ExitCode)
	}
	return time.Since(begin), nil
}
