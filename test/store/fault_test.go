package store

import (
	"archive/tar"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"worknode/test/harness"
)

// slowly passes an answer on in small pieces.
func slowly(w http.ResponseWriter, pause time.Duration) http.ResponseWriter {
	return &dripping{w, pause}
}

type dripping struct {
	http.ResponseWriter
	pause time.Duration
}

func (d *dripping) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		var m int
		m, err = d.ResponseWriter.Write(p[:min(len(p), 16<<10)])
		n += m
		p = p[m:]
		if err == nil {
			err = http.NewResponseController(d.ResponseWriter).Flush()
		}
		time.Sleep(d.pause)
	}
	return n, err
}

// At whatever byte the runtime is killed, an image is whole or absent, and nothing lies about.
func TestKilledAmidPullsAndImports(t *testing.T) {
	n, s := boot(t, ""), openShop(t)
	im := image(t, layer(t, 1, 40, 20<<10, nil), layer(t, 2, 40, 20<<10, nil), layer(t, 3, 40, 20<<10, nil))
	ref := s.push("k:1", im)
	tarFile := filepath.Join(n.dir, "k.tar")
	n.must("pull", ref)
	n.must("export", ref, "-f", tarFile)
	n.must("rm", ref)
	n.nothingLeft(0)
	s.bend(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			w = slowly(w, time.Millisecond)
		}
		next.ServeHTTP(w, r)
	})
	seed := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	half := 0
	for round := range 14 {
		args := []string{"pull", ref}
		if round%2 == 1 {
			args = []string{"import", tarFile}
		}
		ended := make(chan int, 1)
		go func() {
			_, _, code := n.images(args...)
			ended <- code
		}()
		time.Sleep(time.Duration(seed.IntN(250)) * time.Millisecond) // where in the work it hits is the dice's
		n.stop(syscall.SIGKILL)
		if code := <-ended; code != 0 {
			half++
		}
		n.start()
		if got := n.entries("staging"); len(got) > 0 {
			t.Fatalf("round %d: left in staging: %v", round, got)
		}
		here := strings.TrimSpace(n.must("prune", "--dry-run")) != ""
		if layers := len(n.entries("l")); layers != 0 && !here || layers != 3 && here || layers != len(n.entries("sums")) {
			t.Fatalf("round %d: %d layers, %d lists of sums, image there: %v", round, layers, len(n.entries("sums")), here)
		}
		if here {
			n.must("verify")
			n.must("prune")
			n.nothingLeft(0)
		}
	}
	if half == 0 {
		t.Error("no round killed the runtime amid its work: the test tests nothing")
	}
	s.bend(nil)
	n.must("pull", ref)
	n.must("verify", ref)
	n.must("prune")
	n.nothingLeft(0)
}

// A disk without space, or without inodes, fails a pull in clear words, keeps nothing of it, and serves again once there
// is room.
func TestAFullDisk(t *testing.T) {
	n, s := boot(t, ""), openShop(t)
	big := s.push("full:1", image(t, layer(t, 1, 4, 100, nil), layer(t, 2, 40, 100<<10, nil)))
	many := s.push("many:1", image(t, layer(t, 3, 400, 1, nil)))
	// A layer that is small as it comes and large on disk is not refused at once, but when the disk is full.
	bomb := s.push("bomb:1", image(t, layer(t, 4, 1, 10, nil, zeros(64<<20)...)))
	n.stop(syscall.SIGTERM)
	disk := filepath.Join(n.root, "images")
	mountTmpfs(t, disk, "size=2m,nr_inodes=300")
	n.start()
	for _, c := range []struct{ name, ref, want string }{{"bytes", big, "free"}, {"inodes", many, "no space left"}, {"bomb", bomb, "free"}} {
		_, errs, code := n.images("pull", c.ref)
		if code == 0 || !strings.Contains(errs, c.want) {
			t.Errorf("%s: exit %d, want %q in: %s", c.name, code, c.want, errs)
		}
		n.nothingLeft(0)
	}
	if _, errs, code := n.images("import", "/dev/zero"); code == 0 {
		t.Errorf("an endless file was imported: %s", errs)
	}
	n.nothingLeft(0)
	if err := unix.Mount("", disk, "", unix.MS_REMOUNT, "size=300m,nr_inodes=2000"); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{big, many, bomb} {
		n.must("pull", ref)
	}
	n.must("verify")
	// With not a byte left, images can still be removed.
	fill(t, filepath.Join(disk, "filler"))
	n.must("prune")
	n.nothingLeft(0)
	n.stop(syscall.SIGTERM)
}

func zeros(size int64) []*tar.Header {
	return []*tar.Header{{Typeflag: '0', Name: "zeros", Mode: 0o644, Size: size}}
}

func mountTmpfs(t *testing.T, dir, options string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

func fill(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := 1 << 20; block > 0; block /= 2 {
		data := make([]byte, block)
		for err = nil; err == nil; {
			_, err = f.Write(data)
		}
	}
}

// However a registry misbehaves: the pull ends in time, says who did what, and leaves no layer, descriptor or goroutine.
func TestRegistriesThatLie(t *testing.T) {
	n, s := boot(t, "[images]\npull-progress-timeout = '2s'\n"), openShop(t)
	ref := s.push("lie:1", image(t, layer(t, 1, 20, 20<<10, nil)))
	other := s.push("good:1", image(t, layer(t, 2, 2, 100, []tarball.LayerOption{})))
	n.must("pull", other)
	fds, tasks := n.metric("process_open_fds"), n.metric("go_goroutines")
	blob := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/") }
	manifest := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }
	for _, c := range []struct {
		name string
		at   func(*http.Request) bool
		do   func(w http.ResponseWriter, r *http.Request, next http.Handler)
		want string
	}{
		{"never answers", manifest, func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() }, "no whole answer within 2s"},
		{"a layer that never comes", blob, func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() }, "timeout"},
		{"stops amid a layer", blob, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			next.ServeHTTP(&stalling{w, r, 3000}, r)
		}, "no byte came for 2s"},
		{"a web page", manifest, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { io.WriteString(w, "<html>log in here") }, "web page"},
		{"too many requests", manifest, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Retry-After", "3600")
			http.Error(w, "slow down", http.StatusTooManyRequests)
		}, "wait 1h0m0s"},
		{"a storm of 503", blob, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			http.Error(w, "busy", http.StatusServiceUnavailable)
		}, "503"},
		{"redirects in a circle", manifest, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, r.URL.String(), http.StatusFound)
		}, "circle"},
		{"another length", blob, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { io.WriteString(w, "short") }, ""},
		{"other content", blob, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			next.ServeHTTP(&wrong{w}, r)
		}, "digest"},
		{"nonsense for a manifest", manifest, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { io.WriteString(w, "{]") }, "no manifest"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.bend(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if c.at(r) && strings.Contains(r.URL.Path, "/lie/") {
					c.do(w, r, next)
					return
				}
				next.ServeHTTP(w, r)
			})
			_, errs, code := n.imagesWithin(harness.Slow(20*time.Second), "pull", ref)
			if code == 0 || !strings.Contains(errs, c.want) || !strings.Contains(errs, s.host()) {
				t.Errorf("exit %d, want %q and the host in: %s", code, c.want, errs)
			}
			// Layers that were whole may wait for the next try; what was not is gone.
			if got := n.entries("staging"); len(got) > 0 {
				t.Errorf("left in staging: %v", got)
			}
		})
	}
	s.bend(func(w http.ResponseWriter, r *http.Request, next http.Handler) { next.ServeHTTP(w, r) })
	n.must("pull", ref)
	s.server.CloseClientConnections()
	harness.Until(t, "descriptors and goroutines are as before", harness.Slow(20*time.Second), func() bool {
		return n.metric("process_open_fds") <= fds+2 && n.metric("go_goroutines") <= tasks+4
	})
	n.must("prune")
	n.nothingLeft(0)
}

// stalling lets so many bytes through and then nothing.
type stalling struct {
	http.ResponseWriter
	r    *http.Request
	left int
}

func (s *stalling) Write(p []byte) (int, error) {
	if s.left <= 0 {
		<-s.r.Context().Done()
		return 0, s.r.Context().Err()
	}
	n, err := s.ResponseWriter.Write(p[:min(len(p), s.left)])
	s.left -= n
	_ = http.NewResponseController(s.ResponseWriter).Flush()
	if err == nil && n < len(p) {
		m, err := s.Write(p[n:])
		return n + m, err
	}
	return n, err
}

// wrong changes a byte.
type wrong struct{ http.ResponseWriter }

func (w *wrong) Write(p []byte) (int, error) {
	q := append([]byte{}, p...)
	if len(q) > 100 {
		q[100] ^= 1
	}
	return w.ResponseWriter.Write(q)
}

// A damaged table, in each of many ways, costs images at most, never the start.
func TestADamagedTableIsSetAside(t *testing.T) {
	n, s := boot(t, ""), openShop(t)
	ref := s.push("t:1", image(t, layer(t, 1, 2, 100, nil)))
	table := filepath.Join(n.root, "images", "images.json")
	n.must("pull", ref)
	n.stop(syscall.SIGTERM)
	good, err := os.ReadFile(table)
	if err != nil {
		t.Fatal(err)
	}
	flip := func(at int) []byte {
		bad := append([]byte{}, good...)
		bad[at] ^= 0x20
		return bad
	}
	cases := map[string][]byte{"empty": {}, "half": good[:len(good)/2], "null": []byte("null"), "list": []byte("[]"), "nil image": []byte(`{"Version":1,"Images":{"sha256:a":null},"Layers":{"x":null}}`)}
	for at := 3; at < len(good); at += len(good) / 12 {
		cases["byte "+strconv.Itoa(at)] = flip(at)
	}
	for what, data := range cases {
		if err := os.WriteFile(table, data, 0o600); err != nil {
			t.Fatal(err)
		}
		n.start()
		if _, errs, code := n.images("pull", ref); code != 0 {
			t.Errorf("%s: a pull fails after it: %s", what, errs)
		}
		if _, errs, code := n.images("verify", ref); code != 0 {
			t.Errorf("%s: %s", what, errs)
		}
		n.stop(syscall.SIGTERM)
	}
	if t.Failed() {
		t.Log(string(good))
	}
}
