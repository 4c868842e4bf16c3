package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"worknode/fault"
)

// shelf is a registry's repository in memory: what a layout holds, with a hook before each layer.
type shelf struct {
	top     digest.Digest
	silent  bool // tells no digests
	blobs   map[digest.Digest][]byte
	asked   atomic.Int64 // documents
	streams atomic.Int64 // layers
	layer   func(d digest.Digest, data []byte) (io.ReadCloser, error)
}

func (l *layout) shelf(top ocispec.Descriptor) *shelf {
	s := &shelf{top: top.Digest, blobs: map[digest.Digest][]byte{}}
	for _, f := range l.files {
		s.blobs[digest.FromString(f.body)] = []byte(f.body)
	}
	return s
}

func (s *shelf) Resolve(context.Context) (digest.Digest, error) {
	if s.silent {
		return "", nil
	}
	return s.top, nil
}
func (s *shelf) Top(ctx context.Context) (digest.Digest, []byte, error) {
	data, err := s.Manifest(ctx, s.top)
	return s.top, data, err
}
func (s *shelf) Config(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	return s.Manifest(ctx, d.Digest)
}
func (s *shelf) Manifest(_ context.Context, d digest.Digest) ([]byte, error) {
	s.asked.Add(1)
	data, ok := s.blobs[d]
	if !ok {
		return nil, fault.New(fault.NotFound, "no %s", d)
	}
	return data, nil
}
func (s *shelf) Layer(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	s.streams.Add(1)
	if s.layer != nil {
		return s.layer(d.Digest, s.blobs[d.Digest])
	}
	return io.NopCloser(bytes.NewReader(s.blobs[d.Digest])), nil
}

func fetched(t testing.TB, s *Store, ref string, src Source) Image {
	t.Helper()
	im, err := s.Fetch(t.Context(), ref, src)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func clean(t testing.TB, s *Store, layers int) {
	t.Helper()
	if got := onDisk(t, s.Base()); len(got) != layers {
		t.Errorf("layers on disk: %v, want %d", got, layers)
	}
	if got := onDisk(t, s.staging()); len(got) != 0 {
		t.Errorf("in staging: %v", got)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.busy) != 0 || len(s.turns) != 0 || len(s.held) != 0 {
		t.Errorf("busy %v, turns %d, held %v", s.busy, len(s.turns), s.held)
	}
}

func TestAnImageOfEveryCompressionIsFetched(t *testing.T) {
	s := open(t)
	l := newLayout(t)
	a, b, c := tarOf(t, file{name: "d/", mode: 0o1777}, file{name: "d/a"}), tarOf(t, file{name: "d/b"}), tarOf(t, file{name: "c"})
	src := l.shelf(l.image([][]byte{a, b, c}, [][]byte{gz(t, a), b, zst(t, c)}))
	im := fetched(t, s, "reg.example/app:1", src)
	if diff := cmp.Diff([]string{"c", "d", "d/a", "d/b"}, tree(t, mounted(t, s, im))); diff != "" {
		t.Error(diff)
	}
	if im.ID != digest.FromBytes(config(t, a, b, c)).String() || !slices.Equal(im.Tags, []string{"reg.example/app:1"}) ||
		!slices.Equal(im.Digests, []string{"reg.example/app@" + src.top.String()}) {
		t.Errorf("%+v", im)
	}
	clean(t, s, 3)
	n, docs := src.streams.Load(), src.asked.Load()
	if again := fetched(t, s, "reg.example/app:1", src); again.ID != im.ID || src.streams.Load() != n || src.asked.Load() != docs {
		t.Error("an image that is here was fetched again")
	}
	src.silent = true
	if fetched(t, s, "reg.example/app:1", src); src.streams.Load() != n {
		t.Error("layers that are here were fetched again")
	}
	byDigest := fetched(t, s, "reg.example/app:9@"+src.top.String(), src)
	if byDigest.ID != im.ID || len(byDigest.Tags) != 1 {
		t.Errorf("by digest: %+v", byDigest)
	}
	if other := fetched(t, s, "other.example/app:2", src); other.ID != im.ID || len(other.Tags) != 2 || len(other.Digests) != 2 {
		t.Errorf("of another registry: %+v", other)
	}
	if err := s.Remove("other.example/app:2"); err != nil || len(s.List()) != 0 {
		t.Errorf("one tag removed, %d images left, %v", len(s.List()), err)
	}
	clean(t, s, 0)
}

func TestATagMovesAndComesBack(t *testing.T) {
	s := open(t)
	l := newLayout(t)
	one, two := tarOf(t, file{name: "one"}), tarOf(t, file{name: "two"})
	first, second := l.image([][]byte{one}, [][]byte{one}), l.image([][]byte{two}, [][]byte{two})
	src := l.shelf(first)
	a := fetched(t, s, "x.example/a:1", src)
	src.top = second.Digest
	b := fetched(t, s, "x.example/a:1", src)
	if old, _ := s.Get(a.ID); a.ID == b.ID || len(old.Tags) != 0 {
		t.Errorf("the tag stayed: %v", old.Tags)
	}
	src.top = first.Digest
	n := src.streams.Load()
	if c := fetched(t, s, "x.example/a:1", src); c.ID != a.ID || len(c.Tags) != 1 || src.streams.Load() != n {
		t.Errorf("it did not come back: %+v", c)
	}
}

func TestPinnedImages(t *testing.T) {
	s := open(t)
	if err := s.Pin([]string{"web", "reg.example/base/*"}); err != nil {
		t.Fatal(err)
	}
	for tag, want := range map[string]bool{"web:latest": true, "web:1": false, "reg.example/base/a:1": true, "reg.example/other:1": false} {
		if im := load(t, s, dockerTar(t, tag, tarOf(t, file{name: strings.ReplaceAll(tag, "/", "_")}))); im.Pinned != want {
			t.Errorf("%s: pinned %v", tag, im.Pinned)
		}
	}
	for _, bad := range []string{"WEB", "a[", ""} {
		if err := s.Pin([]string{bad}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func platform(d ocispec.Descriptor, os, arch, variant string) ocispec.Descriptor {
	d.Platform = &ocispec.Platform{OS: os, Architecture: arch, Variant: variant}
	return d
}

func TestThisNodesManifestIsChosen(t *testing.T) {
	s := open(t)
	l := newLayout(t)
	im := func(name string) ocispec.Descriptor {
		d := tarOf(t, file{name: name})
		return l.image([][]byte{d}, [][]byte{d})
	}
	base, special, other := im("base"), im("special"), im("other")
	note := base
	note.Annotations = map[string]string{attestationMark: "attestation-manifest"}
	index := func(list ...ocispec.Descriptor) ocispec.Descriptor {
		return l.blob(marshal(t, ocispec.Index{Manifests: list}), ocispec.MediaTypeImageIndex)
	}
	arch := runtime.GOARCH
	tests := []struct {
		name string
		top  ocispec.Descriptor
		want string
	}{
		{"among others", index(platform(other, "linux", "s390x", ""), platform(note, "unknown", "unknown", ""), platform(base, "linux", arch, "")), "base"},
		{"the plain one before the special", index(platform(special, "linux", arch, "v2"), platform(base, "linux", arch, "")), "base"},
		{"in an index of indexes", index(index(platform(other, "windows", arch, "")), index(platform(base, "linux", arch, ""))), "base"},
		{"by its configuration", index(base), "base"},
	}
	for _, tt := range tests {
		got := fetched(t, s, "x.example/a:1", l.shelf(tt.top))
		if diff := cmp.Diff([]string{tt.want}, tree(t, mounted(t, s, got))); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
	_, err := s.Fetch(t.Context(), "x.example/b:1", l.shelf(index(platform(other, "linux", "s390x", ""), platform(other, "linux", "arm", "v7"))))
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "it has: linux/s390x, linux/arm/v7") {
		t.Errorf("got %v", err)
	}
}

func TestBadImagesAreRefusedAndLeaveNothing(t *testing.T) {
	l := newLayout(t)
	good := tarOf(t, file{name: "ok", body: strings.Repeat("data", 10000)})
	conf := l.blob(config(t, good), ocispec.MediaTypeImageConfig)
	layer := l.blob(gz(t, good), ocispec.MediaTypeImageLayerGzip)
	doc := func(v any) ocispec.Descriptor { return l.blob(marshal(t, v), "") }
	manifest := func(edit func(*ocispec.Manifest)) ocispec.Descriptor {
		m := ocispec.Manifest{Config: conf, Layers: []ocispec.Descriptor{layer}}
		edit(&m)
		return doc(m)
	}
	huge := make([]ocispec.Descriptor, maxManifests+1)
	many := make([]ocispec.Descriptor, maxLayers+1)
	for i := range many {
		many[i] = layer
	}
	deep := doc(ocispec.Index{Manifests: []ocispec.Descriptor{manifest(func(*ocispec.Manifest) {})}})
	for range maxNesting + 1 {
		deep = doc(ocispec.Index{Manifests: []ocispec.Descriptor{deep}})
	}
	zero := gz(t, make([]byte, maxTail+4096))
	tests := []struct {
		name string
		top  ocispec.Descriptor
		bend func(*shelf)
		want string
		kind fault.Kind
	}{
		{"schema 1", doc(map[string]any{"schemaVersion": 1, "fsLayers": []int{}}), nil, "schema 1", fault.Invalid},
		{"index and manifest in one", doc(map[string]any{"manifests": []any{}, "config": conf, "layers": []any{}}), nil, "in one", fault.Invalid},
		{"neither", doc(map[string]any{}), nil, "neither", fault.Invalid},
		{"not JSON", l.blob([]byte("{"), ""), nil, "not the JSON", fault.Invalid},
		{"a list", l.blob([]byte("[]"), ""), nil, "not the JSON", fault.Invalid},
		{"an index without end", doc(ocispec.Index{Manifests: huge}), nil, "1001 manifests", fault.Invalid},
		{"layers without end", manifest(func(m *ocispec.Manifest) { m.Layers = many }), nil, "257 layers", fault.Invalid},
		{"too deep", deep, nil, "within each other", fault.Invalid},
		{"a chart", manifest(func(m *ocispec.Manifest) { m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json" }), nil, "helm", fault.Invalid},
		{"encrypted", manifest(func(m *ocispec.Manifest) { m.Layers[0].MediaType += "+encrypted" }), nil, "encrypted", fault.Unsupported},
		{"a digest that is none", manifest(func(m *ocispec.Manifest) { m.Layers[0].Digest = "sha256:../../x" }), nil, "not a sha256", fault.Invalid},
		{"a layer too many", manifest(func(m *ocispec.Manifest) { m.Layers = append(m.Layers, layer) }), nil, "names 1 layers, the manifest 2", fault.Invalid},
		{"no configuration", manifest(func(m *ocispec.Manifest) { m.Config.Digest = digest.FromString("x") }), nil, "no sha256", fault.NotFound},
		{"more than the disk", manifest(func(m *ocispec.Manifest) { m.Layers[0].Size = 1 << 49 }), nil, "the disk has", fault.Exhausted},
		{"another layer", manifest(func(*ocispec.Manifest) {}), func(s *shelf) { s.blobs[layer.Digest] = gz(t, tarOf(t, file{name: "evil"})) }, "content has digest", fault.Invalid},
		{"a layer cut short", manifest(func(*ocispec.Manifest) {}), func(s *shelf) { s.blobs[layer.Digest] = s.blobs[layer.Digest][:60] }, "unexpected EOF", fault.Invalid},
		{"no tar", manifest(func(*ocispec.Manifest) {}), func(s *shelf) { s.blobs[layer.Digest] = []byte("<html>") }, "not a tar", fault.Invalid},
		{"zeroes without end", manifest(func(*ocispec.Manifest) {}), func(s *shelf) { s.blobs[layer.Digest] = zero }, "stray bytes", fault.Invalid},
		{"another manifest", manifest(func(*ocispec.Manifest) {}), func(s *shelf) { s.blobs[s.top] = []byte("{}") }, "digest", fault.Invalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			src := l.shelf(tt.top)
			if tt.bend != nil {
				tt.bend(src)
			}
			_, err := s.Fetch(t.Context(), "x.example/a:1", src)
			if !fault.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v (%v), want %q", err, fault.Of(err), tt.want)
			}
			clean(t, s, 0)
		})
	}
}

func TestConcurrentFetchesOfOneLayerAreOne(t *testing.T) {
	s := open(t)
	l := newLayout(t)
	base := tarOf(t, file{name: "tmp/", mode: 0o1777}, file{name: "big", body: strings.Repeat("0123456789abcdef", 1<<14)})
	implied := tarOf(t, file{name: "tmp/x"})
	var srcs []*shelf
	for i := range 6 {
		own := tarOf(t, file{name: fmt.Sprint("own", i)})
		plain := [][]byte{base, implied, own}
		if i%2 == 1 { // the same layers the other way round: nobody may wait in a circle
			plain = [][]byte{implied, base, own}
		}
		srcs = append(srcs, l.shelf(l.image(plain, plain)))
	}
	var wg sync.WaitGroup
	for i, src := range srcs {
		src.blobs = srcs[len(srcs)-1].blobs
		wg.Go(func() {
			if _, err := s.Fetch(context.Background(), fmt.Sprintf("x.example/a:%d", i), src); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	total := int64(0)
	for _, src := range srcs {
		total += src.streams.Load()
	}
	// base once, the implied layer once per chain and at most once more each for a race, own six times.
	if total < 9 || total > 11 {
		t.Errorf("%d layers were fetched", total)
	}
	clean(t, s, 9)
}

// refusable is a source that says where else to go.
type refusable struct {
	io.Reader
	reject func() bool
}

func (refusable) Close() error   { return nil }
func (r refusable) Reject() bool { return r.reject() }

func TestAWrongLayerIsAskedForElsewhere(t *testing.T) {
	s := open(t)
	l := newLayout(t)
	data := tarOf(t, file{name: "a"})
	src := l.shelf(l.image([][]byte{data}, [][]byte{data}))
	n := 0
	src.layer = func(_ digest.Digest, data []byte) (io.ReadCloser, error) {
		if n++; n == 1 {
			return refusable{strings.NewReader("wrong"), func() bool { return true }}, nil
		}
		return io.NopCloser(bytes.NewReader(data)), nil
	}
	fetched(t, s, "x.example/a:1", src)
	if n != 2 {
		t.Errorf("asked %d times", n)
	}
	clean(t, s, 1)
}

type broken struct{ err error }

func (b broken) Read([]byte) (int, error) { return 0, b.err }

// What was complete when the network failed is not fetched again.
func TestAPullThatFailedGoesOnWhereItWas(t *testing.T) {
	s := open(t)
	l := newLayout(t)
	a, b := tarOf(t, file{name: "a"}), tarOf(t, file{name: "b", body: strings.Repeat("b", 10000)})
	src := l.shelf(l.image([][]byte{a, b}, [][]byte{a, b}))
	first := make(chan struct{})
	src.layer = func(d digest.Digest, data []byte) (io.ReadCloser, error) {
		if d == digest.FromBytes(a) {
			defer close(first)
			return io.NopCloser(bytes.NewReader(data)), nil
		}
		<-first
		for len(onDisk(t, s.Base())) == 0 { // until a has its place
			runtime.Gosched()
		}
		return io.NopCloser(io.MultiReader(bytes.NewReader(data[:3000]), broken{fault.New(fault.Temporary, "the network is gone")})), nil
	}
	_, err := s.Fetch(t.Context(), "x.example/a:1", src)
	if !fault.Is(err, fault.Temporary) || !strings.Contains(err.Error(), "the network is gone") {
		t.Fatalf("got %v", err)
	}
	if got := onDisk(t, s.staging()); len(got) != 0 || len(s.List()) != 0 {
		t.Errorf("staging %v, images %v", got, s.List())
	}
	src.layer = nil
	n := src.streams.Load()
	im := fetched(t, s, "x.example/a:1", src)
	if src.streams.Load() != n+1 || len(im.Layers) != 2 {
		t.Errorf("%d layers were fetched, want 1", src.streams.Load()-n)
	}
	s = reopen(t, s)
	clean(t, s, 2)
}

func TestACancelledFetchLeavesNothingAfterARestart(t *testing.T) {
	s := open(t)
	l := newLayout(t)
	a, b := tarOf(t, file{name: "a"}), tarOf(t, file{name: "b"})
	src := l.shelf(l.image([][]byte{a, b}, [][]byte{a, b}))
	ctx, cancel := context.WithCancel(t.Context())
	src.layer = func(d digest.Digest, data []byte) (io.ReadCloser, error) {
		if d == digest.FromBytes(b) {
			cancel()
			return nil, context.Canceled
		}
		return io.NopCloser(bytes.NewReader(data)), nil
	}
	if _, err := s.Fetch(ctx, "x.example/a:1", src); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	s = reopen(t, s)
	clean(t, s, 0)
}

// Layers packed with a window of 64 MiB come one after the other, those with a usual one beside them.
func TestLargeWindowsTakeTurns(t *testing.T) {
	s := open(t)
	wide, err := zstd.NewWriter(nil, zstd.WithWindowSize(64<<20), zstd.WithSingleSegment(false))
	if err != nil {
		t.Fatal(err)
	}
	defer wide.Close()
	l := newLayout(t)
	var plain, packed [][]byte
	for i := range 4 {
		data := tarOf(t, file{name: fmt.Sprint(i), body: strings.Repeat(fmt.Sprint(i), 100_000)})
		// Written as a stream: the writer does not know the length and asks for its whole window.
		var b bytes.Buffer
		wide.Reset(&b)
		for part := range slices.Chunk(data, 1000) {
			wide.Write(part)
			wide.Flush()
		}
		if err := wide.Close(); err != nil {
			t.Fatal(err)
		}
		if windowOf(b.Bytes()) <= narrow || windowOf(zst(t, data)) > narrow {
			t.Fatalf("windows %d and %d: the test tests nothing", windowOf(b.Bytes()), windowOf(zst(t, data)))
		}
		plain, packed = append(plain, data), append(packed, b.Bytes())
	}
	s.wide <- struct{}{} // somebody else's turn
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := s.Fetch(ctx, "x.example/a:1", l.shelf(l.image(plain, packed))); !errors.Is(err, context.Canceled) {
		t.Errorf("it did not wait: %v", err)
	}
	<-s.wide
	fetched(t, s, "x.example/a:1", l.shelf(l.image(plain, packed)))
	if len(s.wide) != 0 {
		t.Error("the turn was not given back")
	}
	clean(t, s, 4)
}

func FuzzDocument(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"sha256:00"},"layers":[{"size":1}]}`))
	f.Add([]byte(`{"manifests":[{"platform":{"os":"linux","architecture":"amd64"}}]}`))
	f.Add([]byte(`{"schemaVersion":1,"fsLayers":[]}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := readDocument("x", data)
		if err != nil {
			return
		}
		if (d.Manifests == nil) == (d.Config == nil) || len(d.Layers) > maxLayers || len(d.Manifests) > maxManifests {
			t.Fatalf("accepted %+v", d)
		}
		var k fetcher
		if n := len(k.candidates(d.Manifests)); n > len(d.Manifests) {
			t.Fatalf("%d candidates of %d", n, len(d.Manifests))
		}
	})
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}}`))
	f.Add([]byte(`{"rootfs":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		w := wanted{layers: make([]blob, 1)}
		if json.Unmarshal(data, &w.config) == nil && w.match("x") == nil {
			if _, err := blobName(w.layers[0].diff); err != nil {
				t.Fatal("accepted a diff id that is none")
			}
		}
	})
}

func FuzzName(f *testing.F) {
	for _, s := range []string{"web", "a.b/c:d", "x@sha256:" + strings.Repeat("0", 64), "[::1]:5/x", "a//b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(r.String())
		if err != nil || again != r {
			t.Fatalf("%q is %+v, and that is %+v, %v", s, r, again, err)
		}
		if strings.Contains(r.Repository, "..") || strings.HasPrefix(r.Registry, ".") || r.Registry == "" {
			t.Fatalf("%q would be a path: %+v", s, r)
		}
	})
}

// BenchmarkFetch unpacks one gzip layer of 32 MiB, half noise, in files of 256 KiB.
func BenchmarkFetch(b *testing.B) {
	source := rand.NewChaCha8([32]byte{1})
	var files []file
	for i := range 128 {
		data := make([]byte, 256<<10)
		for at := 0; at < len(data); at += 128 {
			source.Read(data[at : at+64])
		}
		files = append(files, file{name: fmt.Sprint("f", i), body: string(data)})
	}
	plain := tarOf(b, files...)
	packed := gz(b, plain)
	l := newLayout(b)
	src := l.shelf(l.image([][]byte{plain}, [][]byte{packed}))
	s := open(b)
	b.SetBytes(int64(len(plain)))
	for b.Loop() {
		im := fetched(b, s, "x.example/a:1", src)
		if err := s.Remove(im.ID); err != nil {
			b.Fatal(err)
		}
	}
}
