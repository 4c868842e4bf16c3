package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const arch = goruntime.GOARCH

// patience is how long a runtime may take to come up, and a single call.
const patience = 60 * time.Second

// contestant is one runtime to measure.
type contestant struct {
	name    string
	command func(dir, images, certs string) (*exec.Cmd, error) // dir is the runtime's own folder
	load    func(ctx context.Context, dir, image string) error // imports a tar file; nil: it finds the folder itself
}

func contestants(top string) []contestant {
	upstream := filepath.Join(top, ".cache", "upstream", "bin")
	return []contestant{
		{name: "worknode", command: func(dir, images, certs string) (*exec.Cmd, error) {
			return exec.Command(filepath.Join(top, "bin", "worknode"), "runtime", "--root", filepath.Join(dir, "root"), "--run", filepath.Join(dir, "run"),
				"--socket", socket(dir), "--images", images, "--certs-dir", certs, "--bridge", "wnbench0", "--pod-cidr", "10.201.0.0/17"), nil
		}},
		containerd("containerd+runc", upstream, filepath.Join(upstream, "runc")),
		containerd("containerd+crun", upstream, filepath.Join(upstream, "crun")),
	}
}

func socket(dir string) string { return filepath.Join(dir, "cri.sock") }

const containerdConfig = `version = 3
root = "%[1]s/root"
state = "%[1]s/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "%[1]s/cri.sock"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "%[2]s"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "%[5]s"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["%[3]s/cni"]
    conf_dir = "%[1]s/net.d"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "it"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.it]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.it.options]
        BinaryName = "%[4]s"
        SystemdCgroup = false
`

const cniConfig = `{"cniVersion": "1.0.0", "name": "bench", "plugins": [
 {"type": "bridge", "bridge": "bench0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
  "ipam": {"type": "host-local", "dataDir": "%s/ipam", "ranges": [[{"subnet": "10.202.0.0/17"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
`

// containerd is containerd 2 with defaults, but for what a machine without CAP_SYS_RESOURCE forces.
func containerd(name, bin, oci string) contestant {
	return contestant{
		name: name,
		command: func(dir, _, certs string) (*exec.Cmd, error) {
			if _, err := os.Stat(oci); err != nil {
				return nil, fmt.Errorf("%w (scripts/upstream brings it)", err)
			}
			if err := os.MkdirAll(filepath.Join(dir, "net.d"), 0o755); err != nil {
				return nil, err
			}
			if err := os.WriteFile(filepath.Join(dir, "net.d", "10-bench.conflist"), fmt.Appendf(nil, cniConfig, dir), 0o644); err != nil {
				return nil, err
			}
			config := filepath.Join(dir, "config.toml")
			if err := os.WriteFile(config, fmt.Appendf(nil, containerdConfig, dir, pause, bin, oci, certs), 0o644); err != nil {
				return nil, err
			}
			cmd := exec.Command(filepath.Join(bin, "containerd"), "-c", config, "-l", "warn")
			cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
			return cmd, nil
		},
		load: func(ctx context.Context, dir, image string) error {
			out, err := exec.CommandContext(ctx, filepath.Join(bin, "ctr"), "-a", socket(dir), "-n", "k8s.io", "images", "import", image).CombinedOutput()
			if err != nil {
				return fmt.Errorf("import %s: %w: %s", image, err, out)
			}
			return nil
		},
	}
}

// node is a contestant that is up.
type node struct {
	contestant
	dir    string
	cmd    *exec.Cmd
	tars   string // folder of images to import
	certs  string // folder of HOST/hosts.toml
	group  string // accounting cgroup of its processes
	pods   string // cgroup of its pods
	conn   *grpc.ClientConn
	cri    cri.RuntimeServiceClient
	images cri.ImageServiceClient
	serial int
}

// start brings a contestant up in a cgroup of its own, with the images in it.
func start(ctx context.Context, c contestant, dir, images string, big *library) (n *node, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	n = &node{contestant: c, dir: dir, group: "/worknode-bench-" + fmt.Sprint(os.Getpid()), pods: "/worknode-bench-pods-" + fmt.Sprint(os.Getpid())}
	defer func() {
		if err != nil {
			n.end()
		}
	}()
	if err := makeGroup(n.group); err != nil {
		return n, err
	}
	n.tars, n.certs = images, filepath.Join(dir, "certs.d")
	if big != nil {
		n.certs = big.certs
	}
	if n.conn, err = grpc.NewClient("unix://"+socket(dir), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		return n, err
	}
	n.cri, n.images = cri.NewRuntimeServiceClient(n.conn), cri.NewImageServiceClient(n.conn)
	if err := n.launch(ctx); err != nil {
		return n, err
	}
	if c.load != nil {
		for _, file := range []string{"sleep.tar", "pause.tar"} {
			if err := c.load(ctx, dir, filepath.Join(images, file)); err != nil {
				return n, err
			}
		}
	}
	return n, n.until(ctx, "the image to be there", func(ctx context.Context) bool {
		r, err := n.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: workload}})
		return err == nil && r.Image != nil
	})
}

// launch starts the runtime's process, the first time or after a kill, and waits until it answers.
func (n *node) launch(ctx context.Context) (err error) {
	if n.cmd, err = n.command(n.dir, n.tars, n.certs); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(n.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	n.cmd.Stdout, n.cmd.Stderr = log, log
	if err := startIn(n.cmd, n.group); err != nil {
		return err
	}
	return n.until(ctx, "the runtime to answer", func(ctx context.Context) bool {
		_, err := n.cri.Version(ctx, &cri.VersionRequest{}, grpc.WaitForReady(true))
		return err == nil
	})
}

// until asks every few milliseconds; there is no event to wait for before the socket answers.
func (n *node) until(ctx context.Context, what string, ok func(context.Context) bool) error {
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok(ctx) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			log, _ := os.ReadFile(filepath.Join(n.dir, "log"))
			return fmt.Errorf("waited %s for %s; its log ends:\n%s", patience, what, log[max(0, len(log)-2000):])
		}
	}
	return nil
}

// end removes all pods, ends the runtime's processes one by one, and its cgroups.
func (n *node) end() {
	ctx, stop := context.WithTimeout(context.Background(), 2*patience)
	defer stop()
	if n.conn != nil {
		n.removeAll(ctx)
		n.conn.Close()
	}
	endGroup(n.pods)
	if n.cmd != nil && n.cmd.Process != nil {
		n.cmd.Process.Signal(os.Interrupt)
		timer := time.AfterFunc(10*time.Second, func() { n.cmd.Process.Kill() })
		n.cmd.Wait()
		timer.Stop()
	}
	endGroup(n.group)
	// Its folder stays until all have been measured: ext4 is slow to hand out inodes that were freed a moment ago, and the
	// next contestant would pay for that.
}
