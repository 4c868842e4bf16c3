// Package cri drives "worknode runtime" as a client of CRI does: over its socket, on the real kernel, as root. The
// runtime is this test binary run again, in a network namespace of its own, so that it can be killed.
package cri

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/kernel/mount"
	"worknode/kernel/netns"
	"worknode/runtime"
	"worknode/runtime/cni"
	"worknode/runtime/handler"
	"worknode/runtime/network"
	"worknode/test/harness"
)

const busybox = "worknode.example/busybox:1"

var (
	monitorBinary string
	imageTar      string
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("WORKNODE_TEST_RUNTIME"); dir != "" {
		serve(dir)
		return
	}
	os.Exit(build(m))
}

// serve is the runtime's life in a process of its own.
func serve(dir string) {
	level := slog.LevelInfo
	if os.Getenv("WORKNODE_TEST_DEBUG") != "" {
		level = slog.LevelDebug
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
	walkSteps(dir)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	do := runtime.Run
	if os.Getenv("WORKNODE_TEST_CLEANUP") != "" {
		do = runtime.Cleanup
	}
	o := runtime.Options{
		Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run"), Monitor: os.Getenv("WORKNODE_TEST_MONITOR"),
		CgroupRoot: "/wn-test-" + filepath.Base(dir), ImageDir: filepath.Join(dir, "images"),
		Bridge:  network.Config{Bridge: "wn0", Subnet: netip.MustParsePrefix("10.88.0.0/24")},
		CDIDirs: []string{filepath.Join(dir, "cdi"), filepath.Join(dir, "cdi-late")},
		NRI:     runtime.NRI{PluginDir: os.Getenv("WORKNODE_TEST_NRI_PLUGINS"), ConfigDir: os.Getenv("WORKNODE_TEST_NRI_CONF")},
	}
	o.NRI.RequestTimeout, _ = time.ParseDuration(os.Getenv("WORKNODE_TEST_NRI_TIMEOUT")) // empty: the usual
	if lab := os.Getenv("WORKNODE_TEST_CNI"); lab != "" {
		o.Bridge = network.Config{}
		o.CNI = cni.Config{ConfDir: filepath.Join(lab, "net.d"), BinDirs: []string{filepath.Join(lab, "bin")}, AddLimit: 3 * time.Second, DelLimit: 3 * time.Second}
	}
	for _, text := range strings.Fields(os.Getenv("WORKNODE_TEST_HANDLERS")) {
		h, err := handler.Parse(text)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		o.Handlers = append(o.Handlers, h)
	}
	if err := do(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// build makes the monitor and the image once for all tests.
func build(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests make namespaces, mounts and cgroups: run them as root")
		return 1
	}
	dir, err := os.MkdirTemp("", "wn-cri-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// A machine without a Go compiler (the VM with cgroup v2) brings the binary along.
	if monitorBinary = os.Getenv("WORKNODE_MONITOR"); monitorBinary == "" {
		monitorBinary = filepath.Join(dir, "worknode-monitor")
		cmd := exec.Command("go", "build", "-o", monitorBinary, "worknode/cmd/worknode-monitor")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the monitor: %v\n%s", err, out)
			return 1
		}
	}
	imageTar = filepath.Join(dir, "busybox.tar")
	if err := writeImage(imageTar); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		return 1
	}
	return m.Run()
}

var applets = []string{"sh", "sleep", "cat", "echo", "true", "false", "id", "ls", "touch", "mkdir", "mount", "ps", "dd", "kill", "head", "tail", "nc", "wget",
	"hostname", "grep", "stty", "tty", "env", "pwd", "rm", "chmod", "seq", "httpd", "test", "setsid", "ip", "readlink", "wc", "unshare", "yes", "date", "df", "stat", "usleep", "ping"}

func writeImage(path string) error {
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("%w (install busybox-static)", err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err == nil {
			err = w.WriteHeader(&h)
		}
		if err == nil {
			_, err = w.Write(data)
		}
	}
	for _, d := range []string{"bin", "etc", "home", "home/alice", "root", "www"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}, nil)
	}
	add(tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil)
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, program)
	for _, a := range applets {
		add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + a, Linkname: "busybox", Mode: 0o777}, nil)
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\nalice:x:1001:1001::/home/alice:/bin/sh\n"))
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\nalice:x:1001:\nstaff:x:50:alice\n"))
	add(tar.Header{Typeflag: tar.TypeReg, Name: "www/index.html", Mode: 0o644}, []byte("hello from the pod\n"))
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		return err
	}
	im, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	im, err = mutate.Config(im, v1.Config{Env: []string{"FROM_IMAGE=yes", "PATH=/bin"}, Cmd: []string{"sleep", "1000"}})
	if err != nil {
		return err
	}
	tag, err := name.NewTag(busybox)
	if err != nil {
		return err
	}
	return tarball.WriteToFile(path, tag, im)
}

// node is one runtime under test.
type node struct {
	t      *testing.T
	dir    string
	cmd    *exec.Cmd
	conn   *grpc.ClientConn
	cri    cri.RuntimeServiceClient
	images cri.ImageServiceClient
	pod    int      // counter for names
	extra  []string // more environment for the next start
}

// newNode starts a runtime with the image imported; at the end of the test it proves that nothing is left.
func newNode(t *testing.T) *node {
	t.Helper()
	return newNodeWith(t)
}

// newNodeWith is newNode with more environment for the runtime.
func newNodeWith(t *testing.T, extra ...string) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "wncri")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: dir, extra: extra}
	if err := os.MkdirAll(filepath.Join(dir, "images"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(imageTar, filepath.Join(dir, "images", "busybox.tar")); err != nil {
		t.Fatal(err)
	}
	if err := netns.Create(filepath.Join(dir, "netns"), "", netns.Net); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.cleanup)
	n.start()
	n.until("image imported", func() bool {
		r, err := n.images.ListImages(n.ctx(), &cri.ListImagesRequest{})
		return err == nil && len(r.Images) == 1
	})
	return n
}

func (n *node) netns() string { return filepath.Join(n.dir, "netns", "net") }

// launch runs the runtime's process.
func (n *node) launch() {
	n.t.Helper()
	log, err := os.OpenFile(filepath.Join(n.dir, "runtime.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	self, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	n.cmd = exec.Command("nsenter", "--net="+n.netns(), self)
	n.cmd.Env = append(os.Environ(), "WORKNODE_TEST_RUNTIME="+n.dir, "WORKNODE_TEST_MONITOR="+monitorBinary)
	n.cmd.Env = append(n.cmd.Env, n.extra...)
	n.cmd.Stdout, n.cmd.Stderr = log, log
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
}

// start runs the runtime and waits until it answers.
func (n *node) start() {
	n.t.Helper()
	n.launch()
	if n.conn == nil {
		var err error
		socket := filepath.Join(n.dir, "run", "runtime.sock")
		n.conn, err = grpc.NewClient("passthrough:///cri", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", socket)
			}), grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
		if err != nil {
			n.t.Fatal(err)
		}
		n.cri, n.images = cri.NewRuntimeServiceClient(n.conn), cri.NewImageServiceClient(n.conn)
	}
	n.conn.ResetConnectBackoff()
	n.until("runtime to answer", func() bool {
		n.conn.ResetConnectBackoff()
		_, err := n.cri.Version(n.ctx(), &cri.VersionRequest{})
		return err == nil
	})
}

// killRuntime is kill -9 and the wait for it.
func (n *node) killRuntime() {
	n.t.Helper()
	n.cmd.Process.Kill()
	n.cmd.Wait()
}

// monitorPid finds the monitor of this node.
func (n *node) monitorPid() int {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err == nil && strings.HasPrefix(string(line), monitorBinary) && strings.Contains(string(line), filepath.Join(n.dir, "run")) {
			var pid int
			fmt.Sscan(e.Name(), &pid)
			return pid
		}
	}
	return 0
}

// cleanup removes all pods, ends the runtime and proves that nothing of it is left.
func (n *node) cleanup() {
	t := n.t
	if t.Failed() {
		for _, f := range []string{"runtime.log", "run/monitor.log"} {
			text, _ := os.ReadFile(filepath.Join(n.dir, f))
			t.Logf("%s:\n%s", f, text)
		}
	}
	if list, err := n.cri.ListPodSandbox(n.ctx(), &cri.ListPodSandboxRequest{}); err == nil {
		for _, s := range list.Items {
			if _, err := n.cri.RemovePodSandbox(n.ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: s.Id}); err != nil {
				t.Errorf("remove sandbox: %v", err)
			}
		}
	} else {
		t.Errorf("list for clean-up: %v", err)
	}
	n.cmd.Process.Signal(syscall.SIGTERM)
	n.cmd.Wait()
	n.conn.Close()
	if text, err := os.ReadFile(filepath.Join(n.dir, "runtime.log")); err != nil || strings.Contains(string(text), "DATA RACE") || strings.Contains(string(text), "panicked") {
		t.Errorf("%v, runtime.log:\n%s", err, text)
	}
	if pid := n.monitorPid(); pid != 0 {
		n.until("monitor to end", func() bool { return n.monitorPid() == 0 })
	}
	if err := netns.Unpin(filepath.Join(n.dir, "netns")); err != nil {
		t.Errorf("netns: %v", err)
	}
	left, err := mount.Below(n.dir)
	if err != nil || len(left) > 0 {
		t.Errorf("mounts left: %v %v", left, err)
	}
	for _, h := range []string{"memory", "cpu", "pids", "unified", ""} {
		group := filepath.Join("/sys/fs/cgroup", h, "wn-test-"+filepath.Base(n.dir))
		if _, err := os.Stat(group); err == nil {
			t.Errorf("cgroup %s is left", group)
		}
	}
	if !t.Failed() {
		os.RemoveAll(n.dir)
	}
}

func (n *node) ctx() context.Context {
	ctx, stop := context.WithTimeout(context.Background(), harness.Slow(60*time.Second))
	_ = stop // ends with the deadline, or the process
	return ctx
}

// until polls with a deadline that says what was missing.
func (n *node) until(what string, ok func() bool) {
	n.t.Helper()
	deadline := time.Now().Add(harness.Slow(20 * time.Second))
	for !ok() {
		if time.Now().After(deadline) {
			n.t.Fatalf("waited in vain for %s", what)
		}
		unix.Poll(nil, 5)
	}
}

// podConfig is a pod as kubelet would ask for it, with a log folder of its own.
func (n *node) podConfig() *cri.PodSandboxConfig {
	n.pod++
	logs := filepath.Join(n.dir, "logs", fmt.Sprint(n.pod))
	if err := os.MkdirAll(logs, 0o755); err != nil {
		n.t.Fatal(err)
	}
	return &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: fmt.Sprintf("pod%d", n.pod), Namespace: "test", Uid: fmt.Sprintf("uid%d", n.pod)},
		Hostname: fmt.Sprintf("pod%d", n.pod), LogDirectory: logs, Labels: map[string]string{"app": "test"},
		DnsConfig: &cri.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"svc.cluster.local"}, Options: []string{"ndots:5"}},
		Linux:     &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}}},
	}
}

func (n *node) runPod(config *cri.PodSandboxConfig) string {
	n.t.Helper()
	r, err := n.cri.RunPodSandbox(n.ctx(), &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		n.t.Fatal(err)
	}
	return r.PodSandboxId
}

// config is a container that runs a shell line.
func config(name, script string) *cri.ContainerConfig {
	c := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: busybox}, LogPath: name + ".log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}}},
	}
	if script != "" {
		c.Command = []string{"sh", "-c", script}
	}
	return c
}

func (n *node) create(pod string, box *cri.PodSandboxConfig, c *cri.ContainerConfig) string {
	n.t.Helper()
	r, err := n.cri.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: box})
	if err != nil {
		n.t.Fatal(err)
	}
	return r.ContainerId
}

// run creates and starts.
func (n *node) run(pod string, box *cri.PodSandboxConfig, c *cri.ContainerConfig) string {
	n.t.Helper()
	id := n.create(pod, box, c)
	if _, err := n.cri.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id}); err != nil {
		n.t.Fatal(err)
	}
	return id
}

func (n *node) status(id string) *cri.ContainerStatus {
	n.t.Helper()
	r, err := n.cri.ContainerStatus(n.ctx(), &cri.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		n.t.Fatal(err)
	}
	return r.Status
}

// exited waits for the end and returns the status.
func (n *node) exited(id string) *cri.ContainerStatus {
	n.t.Helper()
	var s *cri.ContainerStatus
	n.until("exit of "+id[:8], func() bool {
		s = n.status(id)
		return s.State == cri.ContainerState_CONTAINER_EXITED
	})
	return s
}

// output runs a shell line in a new container to its end and returns what it printed on stdout.
func (n *node) output(pod string, box *cri.PodSandboxConfig, c *cri.ContainerConfig) string {
	n.t.Helper()
	s := n.exited(n.run(pod, box, c))
	text := readLog(n.t, s.LogPath)
	if s.ExitCode != 0 {
		n.t.Errorf("%s: exit code %d, output %q", c.Metadata.Name, s.ExitCode, text)
	}
	return text
}

// readLog joins a CRI log's lines into what the process wrote.
func readLog(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(line, " ", 4)
		if len(parts) != 4 {
			t.Fatalf("log line %q", line)
		}
		if parts[2] == "P" {
			parts[3] = strings.TrimSuffix(parts[3], "\n")
		}
		b.WriteString(parts[3])
	}
	return b.String()
}

func (n *node) exec(id string, timeout int64, args ...string) (*cri.ExecSyncResponse, error) {
	return n.cri.ExecSync(n.ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: args, Timeout: timeout})
}

// sh runs a shell line in a running container.
func (n *node) sh(id, script string) string {
	n.t.Helper()
	r, err := n.exec(id, 10, "sh", "-c", script)
	if err != nil {
		n.t.Fatal(err)
	}
	if r.ExitCode != 0 {
		n.t.Errorf("%s: exit code %d, %s%s", script, r.ExitCode, r.Stdout, r.Stderr)
	}
	return string(r.Stdout)
}

func itoa(n int) string { return fmt.Sprint(n) }
