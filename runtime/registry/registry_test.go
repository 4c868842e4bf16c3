package registry

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"worknode/fault"
)

// lab is a registry on loopback with one image in it, app:1, and a handler in front that a test may bend.
type lab struct {
	t      *testing.T
	server *httptest.Server
	image  v1.Image
	front  atomic.Pointer[func(w http.ResponseWriter, r *http.Request, next http.Handler)]
	calls  atomic.Int64
	certs  string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, certs: t.TempDir()}
	back := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	l.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.calls.Add(1)
		if f := l.front.Load(); f != nil {
			(*f)(w, r, back)
			return
		}
		back.ServeHTTP(w, r)
	}))
	t.Cleanup(l.server.Close)
	var err error
	if l.image, err = random.Image(300<<10, 3); err != nil {
		t.Fatal(err)
	}
	l.push("team/app", "1", l.image)
	return l
}

// push writes an image over HTTP; the library's own client would bring Docker's command line along.
func (l *lab) push(repo, tag string, im v1.Image) {
	l.t.Helper()
	send := func(method, path, kind string, body io.Reader) {
		l.t.Helper()
		r, err := http.NewRequestWithContext(l.t.Context(), method, l.server.URL+"/v2/"+repo+path, body)
		if err != nil {
			l.t.Fatal(err)
		}
		r.Header.Set("Content-Type", kind)
		reply, err := http.DefaultClient.Do(r)
		if err != nil {
			l.t.Fatal(err)
		}
		reply.Body.Close()
		if reply.StatusCode != http.StatusCreated {
			l.t.Fatalf("%s %s: %s", method, path, reply.Status)
		}
	}
	layers, err := im.Layers()
	if err != nil {
		l.t.Fatal(err)
	}
	for _, layer := range layers {
		data, err := layer.Compressed()
		if err != nil {
			l.t.Fatal(err)
		}
		send(http.MethodPost, "/blobs/uploads/?digest="+must(layer.Digest()).String(), "", data)
	}
	config, err := im.RawConfigFile()
	if err != nil {
		l.t.Fatal(err)
	}
	send(http.MethodPost, "/blobs/uploads/?digest="+must(im.ConfigName()).String(), "", bytes.NewReader(config))
	manifest, err := im.RawManifest()
	if err != nil {
		l.t.Fatal(err)
	}
	kind, err := im.MediaType()
	if err != nil {
		l.t.Fatal(err)
	}
	send(http.MethodPut, "/manifests/"+tag, string(kind), bytes.NewReader(manifest))
}

func (l *lab) host() string { return strings.TrimPrefix(l.server.URL, "http://") }

func (l *lab) bend(f func(w http.ResponseWriter, r *http.Request, next http.Handler)) {
	l.front.Store(&f)
}

func (l *lab) ref() Ref { return Ref{Registry: l.host(), Repository: "team/app", Tag: "1"} }

func (l *lab) open(ref Ref, login Credentials, stall time.Duration) *Repository {
	l.t.Helper()
	r, err := New(Options{CertsDirs: []string{l.certs}, Agent: "test", Stall: stall}).Open(ref, login)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(r.Close)
	return r
}

// layer describes the image's first layer.
func (l *lab) layer() ocispec.Descriptor {
	l.t.Helper()
	layers, err := l.image.Layers()
	if err != nil {
		l.t.Fatal(err)
	}
	sum, err := layers[0].Digest()
	if err != nil {
		l.t.Fatal(err)
	}
	size, err := layers[0].Size()
	if err != nil {
		l.t.Fatal(err)
	}
	return ocispec.Descriptor{Digest: digest.Digest(sum.String()), Size: size}
}

// fetch reads a layer and checks it.
func fetch(ctx context.Context, r *Repository, d ocispec.Descriptor) error {
	s, err := r.Layer(ctx, d)
	if err != nil {
		return err
	}
	defer s.Close()
	data, err := io.ReadAll(s)
	if err != nil {
		return err
	}
	if digest.FromBytes(data) != d.Digest {
		return fmt.Errorf("wrong content, %d bytes", len(data))
	}
	return nil
}

func (l *lab) hosts(registry, text string) {
	l.t.Helper()
	dir := filepath.Join(l.certs, registry)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644); err != nil {
		l.t.Fatal(err)
	}
}

func blobOf(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/sha256:") }

func TestManifestConfigAndLayers(t *testing.T) {
	l := newLab(t)
	r := l.open(l.ref(), Credentials{}, 0)
	sum, data, err := r.Top(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := l.image.Digest(); sum.String() != want.String() {
		t.Errorf("digest %s, want %s", sum, want)
	}
	if again, err := r.Manifest(t.Context(), sum); err != nil || !bytes.Equal(again, data) {
		t.Errorf("by digest: %v", err)
	}
	if got, err := r.Resolve(t.Context()); err != nil || got != sum {
		t.Errorf("resolve: %s, %v", got, err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Config(t.Context(), m.Config); err != nil {
		t.Error(err)
	}
	for _, d := range m.Layers {
		if err := fetch(t.Context(), r, d); err != nil {
			t.Error(err)
		}
	}
	_, err = r.Manifest(t.Context(), digest.FromString("nothing"))
	if !fault.Is(err, fault.NotFound) {
		t.Errorf("an absent manifest: %v", err)
	}
}

// A registry that asks for a log-in, in each of the ways that registries do.
func TestLogIn(t *testing.T) {
	basicAuth := "Basic " + base64.StdEncoding.EncodeToString([]byte("ann:pass"))
	type want struct {
		kind fault.Kind
		text string
	}
	ok := want{}
	tests := []struct {
		name  string
		asks  string // WWW-Authenticate; %s is the token server
		takes string // Authorization that opens
		login Credentials
		want  want
	}{
		{"basic", `Basic realm="r"`, basicAuth, Credentials{Username: "ann", Password: "pass"}, ok},
		{"basic, wrong", `Basic realm="r"`, basicAuth, Credentials{Username: "ann", Password: "guess"}, want{fault.Denied, `refuses the credentials of "ann"`}},
		{"basic, none", `Basic realm="r"`, basicAuth, Credentials{}, want{fault.Denied, "imagePullSecret"}},
		{"basic, for another registry", `Basic realm="r"`, basicAuth, Credentials{Server: "https://other.example", Username: "ann", Password: "pass"}, want{fault.Denied, "no credentials"}},
		{"token, by password", `Bearer realm="%s/token",service="s",scope="repository:team/app:pull"`, "Bearer by-password", Credentials{Username: "ann", Password: "pass"}, ok},
		{"token, anonymous", `Bearer realm="%s/token",service="s"`, "Bearer anonymous", Credentials{}, ok},
		{"token, by identity", `Bearer realm="%s/token",service="s"`, "Bearer by-identity", Credentials{IdentityToken: "refresh"}, ok},
		{"token, by identity as a password", `Bearer realm="%s/token",service="s"`, "Bearer by-identity", Credentials{Username: "<token>", Password: "refresh"}, ok},
		{"token, password refused", `Bearer realm="%s/token",service="s"`, "Bearer x", Credentials{Username: "ann", Password: "guess"}, want{fault.Denied, `refuses the credentials of "ann"`}},
		{"token, not enough", `Bearer realm="%s/token",service="s"`, "Bearer other", Credentials{}, want{fault.Denied, "no credentials"}},
		{"two ways", `Basic realm="r", Bearer realm="%s/token",service="s"`, "Bearer by-password", Credentials{Username: "ann", Password: "pass"}, ok},
		{"registry token", `Bearer realm="%s/token"`, "Bearer mine", Credentials{RegistryToken: "mine"}, ok},
		{"registry token refused", `Bearer realm="%s/token"`, "Bearer yours", Credentials{RegistryToken: "mine"}, want{fault.Denied, "refuses the credentials given"}},
		{"no way", ``, "x", Credentials{}, want{fault.Denied, "does not say how"}},
		{"a way unknown", `Negotiate`, "x", Credentials{}, want{fault.Denied, "of a kind unknown"}},
		{"a token server that is none", `Bearer realm="file:///etc/passwd"`, "x", Credentials{}, want{fault.Invalid, "no web address"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t)
			l.bend(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.URL.Path == "/token" {
					tokenServer(w, r, basicAuth)
					return
				}
				if r.Header.Get("Authorization") != tt.takes {
					if tt.asks != "" {
						w.Header().Set("WWW-Authenticate", strings.ReplaceAll(tt.asks, "%s", l.server.URL))
					}
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				next.ServeHTTP(w, r)
			})
			_, _, err := l.open(l.ref(), tt.login, time.Second).Top(t.Context())
			if tt.want == ok {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !fault.Is(err, tt.want.kind) || !strings.Contains(err.Error(), tt.want.text) {
				t.Errorf("got %v (%v), want %q (%v)", err, fault.Of(err), tt.want.text, tt.want.kind)
			}
			if strings.Contains(fmt.Sprint(err), "guess") || strings.Contains(fmt.Sprintf("%#v %v", tt.login, tt.login), "pass\"") {
				t.Error("a password shows")
			}
		})
	}
}

func tokenServer(w http.ResponseWriter, r *http.Request, good string) {
	give := func(token string) { fmt.Fprintf(w, `{"token":%q,"expires_in":60}`, token) }
	r.ParseForm()
	if s := r.Form["scope"]; len(s) != 1 || s[0] != "repository:team/app:pull" || r.Form.Get("service") != "s" {
		http.Error(w, "scope "+strings.Join(s, " "), http.StatusTeapot)
		return
	}
	switch auth := r.Header.Get("Authorization"); {
	case r.Method == http.MethodPost && r.Form.Get("grant_type") == "refresh_token" && r.Form.Get("refresh_token") == "refresh":
		fmt.Fprint(w, `{"access_token":"by-identity"}`)
	case r.Method != http.MethodGet:
		w.WriteHeader(http.StatusUnauthorized)
	case auth == good:
		give("by-password")
	case auth == "":
		give("anonymous")
	default:
		w.WriteHeader(http.StatusUnauthorized)
	}
}

// A token ends while layers come: three streams notice at once, one logs in again.
func TestATokenThatEndsIsRenewedOnce(t *testing.T) {
	l := newLab(t)
	var tokens atomic.Int64
	l.bend(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path == "/token" {
			fmt.Fprintf(w, `{"token":"t%d"}`, tokens.Add(1))
			return
		}
		want := "t1"
		if blobOf(r) {
			want = "t2"
		}
		if r.Header.Get("Authorization") != "Bearer "+want {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+l.server.URL+`/token"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
	r := l.open(l.ref(), Credentials{}, time.Second)
	if _, _, err := r.Top(t.Context()); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := fetch(t.Context(), r, l.layer()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := tokens.Load(); n != 2 {
		t.Errorf("%d tokens were asked for, want 2", n)
	}
}

func TestCredentialsStayWithTheRegistry(t *testing.T) {
	seen := make(chan http.Header, 10)
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { seen <- r.Header.Clone() }))
	defer store.Close()
	l := newLab(t)
	l.hosts(l.host(), fmt.Sprintf("server = %q\n[header]\nx-secret = \"s\"\n", l.server.URL))
	l.bend(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Header.Get("X-Secret") != "s" || r.Header.Get("Authorization") != "Bearer mine" {
			t.Errorf("the registry itself misses headers: %v", r.Header)
		}
		http.Redirect(w, r, store.URL+"/somewhere", http.StatusTemporaryRedirect)
	})
	r := l.open(l.ref(), Credentials{RegistryToken: "mine"}, time.Second)
	s, err := r.Layer(t.Context(), ocispec.Descriptor{Digest: digest.FromString("x"), Size: 1})
	if err == nil {
		s.Close()
	}
	h := <-seen
	if h.Get("Authorization") != "" || h.Get("X-Secret") != "" || h.Get("User-Agent") != "test" {
		t.Errorf("the redirect's target saw %v", h)
	}
}

func TestRedirectsThatLeadNowhere(t *testing.T) {
	l := newLab(t)
	for target, want := range map[string]string{
		"":                     "in a circle",
		"/v2/team/app/x/":      "more than 10 redirects",
		"file:///etc/passwd":   "no web address",
		"http://127.0.0.1:1/x": "127.0.0.1",
	} {
		n := 0
		l.bend(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			to := target
			if to == "" {
				to = r.URL.Path
			} else if strings.HasSuffix(to, "/") {
				n++
				to += strconv.Itoa(n)
			}
			w.Header().Set("Location", to)
			w.WriteHeader(http.StatusFound)
		})
		_, _, err := l.open(l.ref(), Credentials{}, time.Second).Top(t.Context())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", target, err)
		}
	}
}

// Connections end at random places, with and without a host that knows ranges.
func TestALayerOutlivesItsConnections(t *testing.T) {
	for _, ranges := range []bool{true, false} {
		l := newLab(t)
		var asked atomic.Int64
		l.bend(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if !blobOf(r) {
				next.ServeHTTP(w, r)
				return
			}
			n := asked.Add(1)
			rec := httptest.NewRecorder()
			inner := r.Clone(r.Context())
			inner.Header.Del("Range")
			next.ServeHTTP(rec, inner)
			data := rec.Body.Bytes()
			from := 0
			if g := r.Header.Get("Range"); g != "" && ranges {
				fmt.Sscanf(g, "bytes=%d-", &from)
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
				w.Header().Set("Content-Length", strconv.Itoa(len(data)-from))
				w.WriteHeader(http.StatusPartialContent)
			} else {
				w.Header().Set("Content-Length", strconv.Itoa(len(data)))
			}
			// Each time a little further than before, so that a host without ranges gets there, too.
			w.Write(data[from:min(len(data), int(n)*97_531)])
			w.(http.Flusher).Flush()
			if int(n)*97_531 < len(data) {
				panic(http.ErrAbortHandler)
			}
		})
		if err := fetch(t.Context(), l.open(l.ref(), Credentials{}, 5*time.Second), l.layer()); err != nil {
			t.Errorf("ranges %v: %v", ranges, err)
		}
		if n := asked.Load(); n < 3 {
			t.Errorf("ranges %v: %d connections, the test cut none", ranges, n)
		}
	}
}

func TestAHostThatStallsIsGivenUp(t *testing.T) {
	l := newLab(t)
	d := l.layer()
	const stall = 400 * time.Millisecond
	tests := map[string]func(w http.ResponseWriter, r *http.Request, next http.Handler){
		"before the answer": func(w http.ResponseWriter, r *http.Request, next http.Handler) { <-r.Context().Done() },
		"in the middle": func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			w.Header().Set("Content-Length", fmt.Sprint(d.Size))
			if r.Header.Get("Range") == "" {
				w.Write(make([]byte, 1000))
				w.(http.Flusher).Flush()
			}
			<-r.Context().Done()
		},
	}
	for name, f := range tests {
		l.bend(f)
		begin := time.Now()
		err := fetch(t.Context(), l.open(l.ref(), Credentials{}, stall), d)
		if !errors.Is(err, context.DeadlineExceeded) && !strings.Contains(fmt.Sprint(err), "timeout") {
			t.Errorf("%s: got %v", name, err)
		}
		if took := time.Since(begin); took > 10*stall {
			t.Errorf("%s: took %v", name, took)
		}
	}
}

// A slow host is no silent one: what comes, comes, however slowly.
func TestATrickleIsProgress(t *testing.T) {
	l := newLab(t)
	data := make([]byte, 40)
	rand.Read(data)
	l.bend(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		for _, b := range data {
			w.Write([]byte{b})
			w.(http.Flusher).Flush()
			pause(r.Context(), 20*time.Millisecond)
		}
	})
	d := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := fetch(t.Context(), l.open(l.ref(), Credentials{}, 400*time.Millisecond), d); err != nil {
		t.Error(err)
	}
}

func TestCancelIsQuick(t *testing.T) {
	l := newLab(t)
	d := l.layer()
	begun := make(chan struct{}, 1)
	l.bend(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		w.Header().Set("Content-Length", fmt.Sprint(d.Size))
		w.Write(make([]byte, 1000))
		w.(http.Flusher).Flush()
		begun <- struct{}{}
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	var begin time.Time
	go func() { <-begun; begin = time.Now(); cancel() }()
	err := fetch(ctx, l.open(l.ref(), Credentials{}, 0), d)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("took %v", took)
	}
}

// What a busy or broken registry answers, and how often it is asked.
func TestAnswersThatAreNoSuccess(t *testing.T) {
	answer := func(code int, header, value, body string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			if header != "" {
				w.Header().Set(header, value)
			}
			w.WriteHeader(code)
			io.WriteString(w, body)
		}
	}
	tests := []struct {
		name   string
		answer func(http.ResponseWriter)
		bad    int64 // answers of this kind before all is well; 0: always
		kind   fault.Kind
		text   string
		most   int64 // requests
	}{
		{"503 twice", answer(503, "", "", ""), 2, 0, "", 3},
		{"429 with a second to wait", answer(429, "Retry-After", "1", ""), 1, 0, "", 2},
		{"429 for an hour", answer(429, "Retry-After", "3600", `{"errors":[{"code":"TOOMANYREQUESTS","message":"rate"}]}`), 0, fault.Temporary, "TOOMANYREQUESTS: rate (it asks us to wait 1h0m0s)", 1},
		{"404", answer(404, "", "", `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"who?"}]}`), 0, fault.NotFound, "404 Not Found: MANIFEST_UNKNOWN: who?", 1},
		{"403", answer(403, "", "", "no\x1b[31m entry"), 0, fault.Denied, "403 Forbidden: no [31m entry", 1},
		{"418", answer(418, "", "", ""), 0, fault.Invalid, "418", 1},
		{"a web page", answer(200, "Content-Type", "text/html", "<html>log in</html>"), 0, fault.Temporary, "a web page", 1},
		{"a web page in disguise", answer(200, "Content-Type", "application/json", "\n <!DOCTYPE html>"), 0, fault.Temporary, "a web page", 1},
		{"nothing", answer(200, "", "", ""), 0, fault.Invalid, "no manifest", 1},
		{"another document", answer(200, "Docker-Content-Digest", digest.FromString("y").String(), "{}"), 0, fault.Invalid, "it should be", 1},
		{"a document without end", func(w http.ResponseWriter) { w.Write(make([]byte, MaxDocument+100)) }, 0, fault.Invalid, "more than 4194304 bytes", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t)
			var n atomic.Int64
			l.bend(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if i := n.Add(1); tt.bad == 0 || i <= tt.bad {
					tt.answer(w)
					return
				}
				next.ServeHTTP(w, r)
			})
			_, _, err := l.open(l.ref(), Credentials{}, 10*time.Second).Top(t.Context())
			if tt.text == "" && err != nil {
				t.Error(err)
			}
			if tt.text != "" && (!fault.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text) || !strings.Contains(err.Error(), l.host())) {
				t.Errorf("got %v (%v)", err, fault.Of(err))
			}
			if n.Load() > tt.most {
				t.Errorf("%d requests, want %d", n.Load(), tt.most)
			}
		})
	}
}

func TestALayerOfAnotherLengthIsRefused(t *testing.T) {
	l := newLab(t)
	d := l.layer()
	for _, wrong := range []int64{-5, 7} {
		d := d
		d.Size += wrong
		if err := fetch(t.Context(), l.open(l.ref(), Credentials{}, time.Second), d); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "the manifest says") {
			t.Errorf("got %v", err)
		}
	}
	for _, size := range []int64{0, -1, 1 << 50} {
		if _, err := l.open(l.ref(), Credentials{}, time.Second).Layer(t.Context(), ocispec.Descriptor{Digest: d.Digest, Size: size}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func TestMirrorsInOrderThenTheRegistry(t *testing.T) {
	mirror, l := newLab(t), newLab(t)
	origin := l.host()
	u, _ := url.Parse(mirror.server.URL)
	l.hosts(origin, fmt.Sprintf("server = %q\n[host.\"http://127.0.0.1:1\"]\n[host.%q]\ncapabilities = [\"pull\"]\n", l.server.URL, mirror.server.URL))
	var asked sync.Map
	mirror.bend(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		asked.Store(r.URL.Path, r.URL.RawQuery)
		next.ServeHTTP(w, r)
	})
	r := l.open(l.ref(), Credentials{}, 3*time.Second)
	sum, _, err := r.Top(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := l.image.Digest(); sum.String() != want.String() {
		t.Error("a mirror that may only pull said what a tag means")
	}
	// The mirror has another image: not this layer, which the registry serves.
	if err := fetch(t.Context(), r, l.layer()); err != nil {
		t.Error(err)
	}
	if q, ok := asked.Load("/v2/team/app/blobs/" + l.layer().Digest.String()); !ok || q != "ns="+origin {
		t.Errorf("mirror %s was asked %v, %q", u.Host, ok, q)
	}
	// A layer that only the mirror has, and the registry is away.
	l.server.Close()
	if err := fetch(t.Context(), r, mirror.layer()); err != nil {
		t.Error(err)
	}
	_, _, err = r.Top(t.Context())
	if err == nil || !strings.Contains(err.Error(), "mirror 127.0.0.1:1: ") || !strings.Contains(err.Error(), origin+": manifests/1: ") {
		t.Errorf("got %v: it should tell of both hosts", err)
	}
}

func TestAMirrorThatLiesIsLeft(t *testing.T) {
	mirror, l := newLab(t), newLab(t)
	l.hosts(l.host(), fmt.Sprintf("server = %q\n[host.%q]\n", l.server.URL, mirror.server.URL))
	d := l.layer()
	mirror.bend(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		w.Header().Set("Content-Length", fmt.Sprint(d.Size))
		w.Write(make([]byte, d.Size))
	})
	r := l.open(Ref{Registry: l.host(), Repository: "team/app", Digest: must(l.image.Digest())}, Credentials{}, time.Second)
	if _, _, err := r.Top(t.Context()); err != nil {
		t.Errorf("a wrong manifest of the mirror was not passed over: %v", err)
	}
	s, err := r.Layer(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(s); err != nil || digest.FromBytes(data) == d.Digest {
		t.Fatal("the mirror did not lie", err)
	}
	s.Close()
	if again := s.(interface{ Reject() bool }).Reject(); !again {
		t.Fatal("there is nobody else to ask")
	}
	if err := fetch(t.Context(), r, d); err != nil {
		t.Error(err)
	}
}

func must(h v1.Hash, err error) digest.Digest {
	if err != nil {
		panic(err)
	}
	return digest.Digest(h.String())
}
