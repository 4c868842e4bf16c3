// Package store drives the images of `worknode runtime` as people and clusters do: with the commands of `worknode images`
// against registries that behave, break and lie, on disks that fill up, in processes that are killed. The whole test
// binary runs in network and mount namespaces of its own.
package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"worknode/test/harness"
)

const inside = "WORKNODE_TEST_INSIDE"

func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests make namespaces and mounts: run them as root")
		os.Exit(1)
	}
	unshare, err := exec.LookPath("unshare")
	if err == nil {
		argv := append([]string{"unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", `ip link set lo up && exec "$0" "$@"`, "/proc/self/exe"}, os.Args[1:]...)
		argv[8] = self()
		err = syscall.Exec(unshare, argv, append(os.Environ(), inside+"=1"))
	}
	fmt.Fprintln(os.Stderr, "enter namespaces of our own:", err)
	os.Exit(1)
}

func self() string {
	path, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	return path
}

// node is one runtime process and its folders.
type node struct {
	t     *testing.T
	dir   string
	root  string
	extra string // of the configuration
	cmd   *exec.Cmd
	log   *buffer
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) { b.mu.Lock(); defer b.mu.Unlock(); return b.b.Write(p) }
func (b *buffer) String() string              { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

// boot starts a runtime whose configuration has extra at its end.
func boot(t *testing.T, extra string) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "wn-st-")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: dir, root: filepath.Join(dir, "root"), extra: extra}
	t.Cleanup(func() {
		n.stop(syscall.SIGTERM)
		if t.Failed() {
			t.Logf("the runtime said:\n%s", n.log)
		}
		os.RemoveAll(dir)
	})
	n.start()
	return n
}

func (n *node) start() {
	n.t.Helper()
	file := n.configure()
	n.log = &buffer{}
	n.cmd = exec.Command(harness.Binary(n.t, "worknode"), "runtime", "--config", file)
	n.cmd.Stderr = n.log
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	harness.Until(n.t, "the runtime serves", harness.Slow(20*time.Second), func() bool {
		return n.cmd.ProcessState == nil && strings.Contains(n.log.String(), "runtime serves")
	})
}

// configure writes the configuration file.
func (n *node) configure() string {
	n.t.Helper()
	file := filepath.Join(n.dir, "config.toml")
	text := fmt.Sprintf("root = '%s'\nrun = '%s/run'\nsocket = '%s'\ncgroup = '/wn-store-%s'\n%s\n[network]\ncni-conf-dir = '%s/cni'\n", n.root, n.dir, n.socket(), filepath.Base(n.dir), n.extra, n.dir)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
	return file
}

func (n *node) stop(how syscall.Signal) {
	if n.cmd == nil {
		return
	}
	_ = n.cmd.Process.Signal(how)
	_ = n.cmd.Wait()
	n.cmd = nil
}

func (n *node) socket() string { return filepath.Join(n.dir, "cri.sock") }
func (n *node) debug() string  { return filepath.Join(n.dir, "run", "debug.sock") }

// images runs `worknode images` and returns what it said and its exit code.
func (n *node) images(args ...string) (stdout, stderr string, code int) {
	n.t.Helper()
	return n.imagesWithin(harness.Slow(60*time.Second), args...)
}

func (n *node) imagesWithin(limit time.Duration, args ...string) (stdout, stderr string, code int) {
	n.t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), limit)
	defer stop()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, harness.Binary(n.t, "worknode"), append([]string{"images"}, append(args, "--socket", n.socket(), "--debug-socket", n.debug())...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run()
	if ctx.Err() != nil {
		n.t.Errorf("worknode images %v did not end within %s", args, limit)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// must is images that is to succeed.
func (n *node) must(args ...string) string {
	n.t.Helper()
	out, errs, code := n.images(args...)
	if code != 0 {
		n.t.Fatalf("worknode images %v: exit %d\n%s%s", args, code, out, errs)
	}
	return out
}

// metric reads one number of the runtime's.
func (n *node) metric(name string) float64 {
	n.t.Helper()
	out, err := exec.Command("curl", "-sS", "--max-time", "10", "--unix-socket", n.debug(), "http://runtime/metrics").Output()
	if err != nil {
		n.t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				n.t.Fatal(err)
			}
			return v
		}
	}
	n.t.Fatalf("no metric %s in\n%s", name, out)
	return 0
}

// entries lists a folder of the image store.
func (n *node) entries(folder string) []string {
	n.t.Helper()
	list, err := os.ReadDir(filepath.Join(n.root, "images", folder))
	if err != nil {
		n.t.Fatal(err)
	}
	var out []string
	for _, e := range list {
		out = append(out, e.Name())
	}
	return out
}

// nothingLeft checks that the store holds so many layers and nothing else.
func (n *node) nothingLeft(layers int) {
	n.t.Helper()
	if got := n.entries("staging"); len(got) > 0 {
		n.t.Errorf("left in staging: %v", got)
	}
	for _, folder := range []string{"l", "sums"} {
		if got := n.entries(folder); len(got) != layers {
			n.t.Errorf("in %s: %v, want %d", folder, got, layers)
		}
	}
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		n.t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if strings.Contains(line, n.root+"/images/") {
			n.t.Errorf("a mount is left: %s", line)
		}
	}
}

// shop is a registry in this process, with a hook before it.
type shop struct {
	t      *testing.T
	server *httptest.Server
	mu     sync.Mutex
	hook   func(w http.ResponseWriter, r *http.Request, next http.Handler)
}

func openShop(t *testing.T) *shop {
	s := &shop{t: t}
	inner := registry.New(registry.WithReferrersSupport(true), registry.Logger(log.New(io.Discard, "", 0)))
	s.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		hook := s.hook
		s.mu.Unlock()
		if hook != nil && r.Method != http.MethodPut && r.Method != http.MethodPost && r.Method != http.MethodPatch {
			hook(w, r, inner)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(s.server.CloseClientConnections)
	t.Cleanup(s.server.Close)
	t.Cleanup(func() { s.bend(nil) })
	return s
}

func (s *shop) bend(hook func(w http.ResponseWriter, r *http.Request, next http.Handler)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = hook
}

func (s *shop) host() string { return strings.TrimPrefix(s.server.URL, "http://") }

// push puts an image or index under a name and returns it in full. (The module's own client brings half of Docker.)
func (s *shop) push(short string, what any) string {
	s.t.Helper()
	repo, tag, _ := strings.Cut(short, ":")
	switch what := what.(type) {
	case v1.Image:
		s.put(repo, tag, s.image(repo, what))
	case v1.ImageIndex:
		list, err := what.IndexManifest()
		if err != nil {
			s.t.Fatal(err)
		}
		for _, d := range list.Manifests {
			im, err := what.Image(d.Digest)
			if err != nil {
				s.t.Fatal(err)
			}
			s.put(repo, d.Digest.String(), s.image(repo, im))
		}
		s.put(repo, tag, what)
	}
	return s.host() + "/" + short
}

// document is an image's manifest or an index.
type document interface {
	RawManifest() ([]byte, error)
	MediaType() (types.MediaType, error)
}

// image puts an image's blobs.
func (s *shop) image(repo string, im v1.Image) document {
	s.t.Helper()
	layers, err := im.Layers()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, l := range layers {
		body, err := l.Compressed()
		if err != nil {
			s.t.Fatal(err)
		}
		data, err := io.ReadAll(body)
		if err != nil {
			s.t.Fatal(err)
		}
		s.blob(repo, data)
	}
	config, err := im.RawConfigFile()
	if err != nil {
		s.t.Fatal(err)
	}
	s.blob(repo, config)
	return im
}

func (s *shop) blob(repo string, data []byte) {
	s.t.Helper()
	s.send(http.MethodPost, fmt.Sprintf("/v2/%s/blobs/uploads/?digest=sha256:%x", repo, sha256.Sum256(data)), "application/octet-stream", data)
}

func (s *shop) put(repo, target string, d document) {
	s.t.Helper()
	data, err := d.RawManifest()
	if err != nil {
		s.t.Fatal(err)
	}
	kind, err := d.MediaType()
	if err != nil {
		s.t.Fatal(err)
	}
	s.send(http.MethodPut, "/v2/"+repo+"/manifests/"+target, string(kind), data)
}

func (s *shop) send(method, path, kind string, data []byte) {
	s.t.Helper()
	request, err := http.NewRequestWithContext(s.t.Context(), method, s.server.URL+path, bytes.NewReader(data))
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header.Set("Content-Type", kind)
	reply, err := s.server.Client().Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	defer reply.Body.Close()
	if reply.StatusCode != http.StatusCreated {
		text, _ := io.ReadAll(reply.Body)
		s.t.Fatalf("%s %s: %s %s", method, path, reply.Status, text)
	}
}
