package cri

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/kernel/netns"
)

// registry is a real one on the node's loopback, with a gate in front of its blobs.
type registry struct {
	t    *testing.T
	host string
	back http.Handler
	// gate, if set, sees each request for a blob before it is served.
	gate  atomic.Pointer[func(w http.ResponseWriter, r *http.Request) (done bool)]
	blobs atomic.Int64 // requests for blobs
}

func newRegistry(n *node) *registry {
	n.t.Helper()
	g := &registry{t: n.t, back: ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))}
	var l net.Listener
	err := netns.Do(n.netns(), func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp4", "127.0.0.1:0")
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	g.host = l.Addr().String()
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: g}}
	s.Start()
	n.t.Cleanup(s.Close)
	return g
}

func (g *registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
		g.blobs.Add(1)
		if f := g.gate.Load(); f != nil && (*f)(w, r) {
			return
		}
	}
	g.back.ServeHTTP(w, r)
}

func (g *registry) hold(f func(w http.ResponseWriter, r *http.Request) bool) { g.gate.Store(&f) }
func (g *registry) release()                                                 { g.gate.Store(nil) }

func sum(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

// put gives the registry's handler a document or blob directly.
func (g *registry) put(method, path, kind string, data []byte) {
	g.t.Helper()
	r := httptest.NewRequest(method, "/v2/"+path, bytes.NewReader(data))
	r.Header.Set("Content-Type", kind)
	w := httptest.NewRecorder()
	g.back.ServeHTTP(w, r)
	if w.Code != http.StatusCreated {
		g.t.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
	}
}

// push makes an image of layers (unpacked) and returns its full name.
func (g *registry) push(repo, tag string, layers ...[]byte) string {
	g.t.Helper()
	type descriptor struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int    `json:"size"`
	}
	var diffs []string
	var list []descriptor
	for _, l := range layers {
		var b bytes.Buffer
		z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
		if err != nil {
			g.t.Fatal(err)
		}
		z.Write(l)
		if err := z.Close(); err != nil {
			g.t.Fatal(err)
		}
		diffs = append(diffs, sum(l))
		list = append(list, descriptor{"application/vnd.docker.image.rootfs.diff.tar.gzip", sum(b.Bytes()), b.Len()})
		g.put(http.MethodPost, repo+"/blobs/uploads/?digest="+sum(b.Bytes()), "", b.Bytes())
	}
	encode := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			g.t.Fatal(err)
		}
		return data
	}
	conf := encode(map[string]any{"architecture": goruntime.GOARCH, "os": "linux", "config": map[string]any{"User": "7", "Cmd": []string{"/x"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs}})
	g.put(http.MethodPost, repo+"/blobs/uploads/?digest="+sum(conf), "", conf)
	const kind = "application/vnd.docker.distribution.manifest.v2+json"
	g.put(http.MethodPut, repo+"/manifests/"+tag, kind, encode(map[string]any{"schemaVersion": 2, "mediaType": kind,
		"config": descriptor{"application/vnd.docker.container.image.v1+json", sum(conf), len(conf)}, "layers": list}))
	return g.host + "/" + repo + ":" + tag
}

// noise is a layer with one file that does not compress.
func noise(t *testing.T, name string, size int) []byte {
	t.Helper()
	data := make([]byte, size)
	rand.NewChaCha8(sha256.Sum256([]byte(name))).Read(data)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(size)}); err != nil {
		t.Fatal(err)
	}
	w.Write(data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (n *node) pull(ref string) (string, error) {
	r, err := n.images.PullImage(n.ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	return r.GetImageRef(), err
}

func (n *node) imageStatus(ref string) *cri.Image {
	n.t.Helper()
	r, err := n.images.ImageStatus(n.ctx(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
	if err != nil {
		n.t.Fatal(err)
	}
	return r.Image
}

// staging lists layers that are being written.
func (n *node) staging() int {
	list, err := os.ReadDir(filepath.Join(n.dir, "root", "images", "staging"))
	if err != nil {
		n.t.Fatal(err)
	}
	return len(list)
}

func (n *node) layers() int {
	list, err := os.ReadDir(filepath.Join(n.dir, "root", "images", "l"))
	if err != nil {
		n.t.Fatal(err)
	}
	return len(list)
}

func TestPullStatusListAndRemove(t *testing.T) {
	n := newNode(t)
	g := newRegistry(n)
	before := n.layers()
	ref := g.push("team/app", "1", noise(t, "a", 1000), noise(t, "b", 2000))
	if n.imageStatus(ref) != nil {
		t.Fatal("it is there before the pull")
	}
	id, err := n.pull(ref)
	if err != nil {
		t.Fatal(err)
	}
	im := n.imageStatus(ref)
	if im == nil || im.Id != id || im.GetUid().GetValue() != 7 || len(im.RepoTags) != 1 || im.RepoTags[0] != ref || im.Size < 3000 {
		t.Fatalf("status %+v", im)
	}
	if len(im.RepoDigests) != 1 || !strings.HasPrefix(im.RepoDigests[0], g.host+"/team/app@sha256:") {
		t.Fatalf("digests %v", im.RepoDigests)
	}
	for _, name := range []string{im.RepoDigests[0], id} {
		if again, err := n.pull(name); err != nil || again != id {
			t.Errorf("pull of %s: %s, %v", name, again, err)
		}
		if got := n.imageStatus(name); got.GetId() != id {
			t.Errorf("status of %s: %v", name, got)
		}
	}
	second := g.push("other/app", "2", noise(t, "a", 1000), noise(t, "b", 2000))
	if other, err := n.pull(second); err != nil || other != id {
		t.Errorf("the same image under another name: %s, %v", other, err)
	}
	if _, err := n.images.RemoveImage(n.ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
		t.Fatal(err)
	}
	if n.imageStatus(second) != nil || n.layers() != before || n.staging() != 0 {
		t.Errorf("after the removal: %v, %d layers, %d in staging", n.imageStatus(second), n.layers(), n.staging())
	}
}

// An image from a tar of the node is not asked for at a registry that nobody can reach.
func TestAnImportedImageNeedsNoRegistry(t *testing.T) {
	n := newNode(t)
	if id, err := n.pull(busybox); err != nil || id == "" {
		t.Fatal(id, err)
	}
	_, err := n.pull("worknode.example/absent:1")
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "images") {
		t.Errorf("got %v", err)
	}
}

func TestPullErrorsHaveTheirCodes(t *testing.T) {
	n := newNode(t)
	g := newRegistry(n)
	ref := g.push("team/app", "1", noise(t, "a", 1000))
	closed := "127.0.0.1:1/x:1"
	for _, tt := range []struct {
		ref  string
		code codes.Code
		text string
	}{
		{g.host + "/team/app:2", codes.NotFound, "404 Not Found"},
		{"UPPER", codes.InvalidArgument, "image name"},
		{"", codes.InvalidArgument, "names no image"},
		{closed, codes.Unavailable, "connection refused"},
	} {
		if _, err := n.pull(tt.ref); status.Code(err) != tt.code || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%q: got %v", tt.ref, err)
		}
	}
	g.hold(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	request := &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}, Auth: &cri.AuthConfig{Auth: "YW5uOnBhc3M="}}
	_, err := n.images.PullImage(n.ctx(), request)
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), `the credentials of "ann"`) {
		t.Errorf("got %v", err)
	}
	g.hold(func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, _ := r.BasicAuth(); u == "ann" && p == "pass" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	if _, err := n.images.PullImage(n.ctx(), request); err != nil {
		t.Error(err)
	}
}

func TestPullsOfOneImageAreOneAndEndWithTheLast(t *testing.T) {
	n := newNode(t)
	g := newRegistry(n)
	ref := g.push("team/app", "1", noise(t, "a", 1<<20))
	arrived, left := make(chan struct{}, 10), make(chan struct{}, 10)
	g.hold(func(w http.ResponseWriter, r *http.Request) bool {
		arrived <- struct{}{}
		<-r.Context().Done()
		left <- struct{}{}
		return true
	})
	request := &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}}
	ctx, cancel := context.WithCancel(n.ctx())
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if _, err := n.images.PullImage(ctx, request); status.Code(err) != codes.Canceled {
				t.Errorf("got %v", err)
			}
		})
	}
	<-arrived
	begin := time.Now()
	cancel()
	wg.Wait()
	<-left // the registry sees it, too
	if took := time.Since(begin); took > time.Second {
		t.Errorf("it took %v to end", took)
	}
	n.until("staging to be empty", func() bool { return n.staging() == 0 })
	if got := len(arrived); got != 0 {
		t.Errorf("%d more requests: three clients made more than one pull", got)
	}
	g.release()
	if _, err := n.pull(ref); err != nil {
		t.Error(err)
	}
}

// kill -9 at several bytes of a pull: the image is absent, nothing of it takes space, and the next pull succeeds.
func TestKilledInThePullLeavesNoHalfImage(t *testing.T) {
	n := newNode(t)
	g := newRegistry(n)
	const size = 2 << 20
	before := n.layers()
	ref := g.push("team/app", "1", noise(t, "a", 1000), noise(t, "b", size), noise(t, "c", size))
	for _, at := range []int{0, 1, size / 2, size - 1000} {
		arrived := make(chan struct{}, 10)
		g.hold(func(w http.ResponseWriter, r *http.Request) bool {
			rec := httptest.NewRecorder()
			g.back.ServeHTTP(rec, r)
			data := rec.Body.Bytes()
			if len(data) < size {
				w.Write(data)
				return true
			}
			w.Header().Set("Content-Length", strconv.Itoa(len(data)))
			w.Write(data[:at])
			w.(http.Flusher).Flush()
			arrived <- struct{}{}
			<-r.Context().Done()
			return true
		})
		done := make(chan error, 1)
		go func() { _, err := n.pull(ref); done <- err }()
		<-arrived
		<-arrived
		n.killRuntime()
		if err := <-done; err == nil {
			t.Fatal("the pull succeeded")
		}
		n.start()
		if n.imageStatus(ref) != nil || n.staging() != 0 || n.layers() != before {
			t.Errorf("killed at byte %d: image %v, %d in staging, %d layers, want %d", at, n.imageStatus(ref), n.staging(), n.layers(), before)
		}
	}
	g.release()
	if _, err := n.pull(ref); err != nil {
		t.Fatal(err)
	}
	// Killed once more when all is done: the image is there, and whole.
	n.killRuntime()
	n.start()
	if n.imageStatus(ref) == nil {
		t.Error("the image is gone")
	}
}

// A connection that breaks again and again, at random places.
func TestPullOverABadNetwork(t *testing.T) {
	n := newNode(t)
	g := newRegistry(n)
	ref := g.push("team/app", "1", noise(t, "a", 1<<20), noise(t, "b", 1<<20))
	g.hold(func(w http.ResponseWriter, r *http.Request) bool {
		rec := httptest.NewRecorder()
		plain := r.Clone(r.Context())
		plain.Header.Del("Range")
		g.back.ServeHTTP(rec, plain)
		data := rec.Body.Bytes()
		from := 0
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
			w.Header().Set("Content-Length", strconv.Itoa(len(data)-from))
			w.WriteHeader(http.StatusPartialContent)
		}
		end := min(len(data), from+1+rand.IntN(300<<10))
		w.Write(data[from:end])
		w.(http.Flusher).Flush()
		if end < len(data) {
			panic(http.ErrAbortHandler)
		}
		return true
	})
	if _, err := n.pull(ref); err != nil {
		t.Fatal(err)
	}
	if n := g.blobs.Load(); n < 5 {
		t.Errorf("%d connections: the test cut too few", n)
	}
}

// TestPullIsFastAndSmall holds the runtime to its memory while a large image comes; WORKNODE_BENCH_MB makes it larger.
func TestPullIsFastAndSmall(t *testing.T) {
	megabytes := 64
	if s := os.Getenv("WORKNODE_BENCH_MB"); s != "" {
		var err error
		if megabytes, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	n := newNode(t)
	g := newRegistry(n)
	var layers [][]byte
	for i := range 8 {
		layers = append(layers, mixed(t, fmt.Sprint("layer", i), megabytes<<20/8))
	}
	ref := g.push("big/app", "1", layers...)
	clear := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", n.pid()), []byte("5"), 0)
	if clear != nil {
		t.Fatal(clear)
	}
	cpu := n.cpu()
	begin := time.Now()
	if _, err := n.pull(ref); err != nil {
		t.Fatal(err)
	}
	wall := time.Since(begin)
	peak := n.memory("VmHWM")
	t.Logf("%d MB in 8 layers: wall %v, CPU of the runtime %v, peak RSS %d MB", megabytes, wall.Round(time.Millisecond), n.cpu()-cpu, peak>>10)
	if peak > 100<<10 {
		t.Errorf("the runtime took %d MB, at most 100 are allowed", peak>>10)
	}
}

// mixed is a layer of files of 256 KiB, half of each noise.
func mixed(t *testing.T, name string, size int) []byte {
	t.Helper()
	var b bytes.Buffer
	b.Grow(size + size/100)
	w := tar.NewWriter(&b)
	source := rand.NewChaCha8(sha256.Sum256([]byte(name)))
	data := make([]byte, 256<<10)
	for i := range size / len(data) {
		for at := 0; at < len(data); at += 128 {
			source.Read(data[at : at+64])
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%s-%d", name, i), Mode: 0o644, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		w.Write(data)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// pid is the runtime's own: nsenter has become it.
func (n *node) pid() int { return n.cmd.Process.Pid }

func (n *node) memory(field string) (kib int) {
	n.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.pid()))
	if err != nil {
		n.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			fmt.Sscan(rest, &kib)
		}
	}
	return kib
}

func (n *node) cpu() time.Duration {
	n.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.pid()))
	if err != nil {
		n.t.Fatal(err)
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+2:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * time.Second / 100 // USER_HZ, the same on all of Linux
}
