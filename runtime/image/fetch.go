package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/cpu"

	"worknode/fault"
)

const (
	keepPartial = 10 * time.Minute // how long layers of a pull that failed wait for the next try
	maxGuesses  = 8                // manifests of an index that are fetched because it does not say what they are for
)

// Source is the repository of one image in a registry. What it returns is checked here, too.
type Source interface {
	// Resolve returns the digest of what the reference names, or none if the registry does not tell.
	Resolve(ctx context.Context) (digest.Digest, error)
	// Top returns what the reference names: a manifest or an index.
	Top(ctx context.Context) (digest.Digest, []byte, error)
	Manifest(ctx context.Context, d digest.Digest) ([]byte, error)
	Config(ctx context.Context, d ocispec.Descriptor) ([]byte, error)
	// Layer returns a layer's bytes; the stream may be a Rejecter.
	Layer(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error)
}

// Vetter is a Source that has a say in whether the image is welcome. It is told the digests of what the reference names
// and, once known, of this node's manifest. An error keeps the image out before a layer is fetched.
type Vetter interface {
	Vet(ctx context.Context, sums ...digest.Digest) error
}

func vet(ctx context.Context, src Source, sums ...digest.Digest) error {
	if v, ok := src.(Vetter); ok {
		return v.Vet(ctx, sums...)
	}
	return nil
}

// Fetch brings in the image that ref names from a registry, or finds that the store has it already. Layers stream from
// the source to their place; those that the store has are not fetched. A tag moves to the image that it names now.
// Errors: those of the source; Invalid if the image is damaged or not for this node; Exhausted if the disk is too small.
// Repeat: safe; layers that were complete when it failed are kept for a while. Crash: nothing of it is left.
func (s *Store) Fetch(ctx context.Context, ref string, src Source) (Image, error) {
	repo, rest, err := repository(ref)
	if err != nil {
		return Image{}, fault.New(fault.Invalid, "image name %q: %w", ref, err)
	}
	if im, ok, err := s.unchanged(ctx, repo, rest, src); ok || err != nil {
		return im, err
	}
	sum, data, err := src.Top(ctx)
	if err != nil {
		return Image{}, err
	}
	f := fetcher{ctx: ctx, src: src}
	w, err := f.top(sum, data)
	if err != nil {
		return Image{}, err
	}
	sums := []digest.Digest{sum}
	if w.manifest != sum {
		sums = append(sums, w.manifest)
	}
	if err := vet(ctx, src, sums...); err != nil {
		return Image{}, err
	}
	expect(ctx, w.layers)
	if err := s.fits(w); err != nil {
		return Image{}, err
	}
	r, held, err := s.unpackImage(ctx, *w)
	if err != nil {
		s.linger(held, err)
		return Image{}, err
	}
	defer s.unhold(held)
	if strings.HasPrefix(rest, ":") {
		r.Tags = []string{repo + rest}
	}
	r.Digests = []string{repo + "@" + sum.String()}
	list, err := s.enter([]*record{r})
	if err != nil {
		return Image{}, err
	}
	return list[0], nil
}

// unchanged says whether the store has what the reference names now. The registry is asked in any case: it may have
// moved the tag, or not want to show the image to this user.
func (s *Store) unchanged(ctx context.Context, repo, rest string, src Source) (Image, bool, error) {
	if _, ok := s.Get(repo + rest); !ok {
		return Image{}, false, nil
	}
	sum, err := src.Resolve(ctx)
	if fault.Is(err, fault.Invalid) {
		return Image{}, false, nil // a registry that does not like the question
	}
	if err != nil || sum == "" || vet(ctx, src, sum) != nil { // of an index, its manifest may be what is signed
		return Image{}, false, err
	}
	s.mu.Lock()
	r := s.find(repo + "@" + sum.String())
	moved := r != nil && strings.HasPrefix(rest, ":") && !slices.Contains(r.Tags, repo+rest)
	if moved {
		s.claim(r, repo+rest)
	}
	var im Image
	if r != nil {
		im = s.show(r)
	}
	if r != nil && !s.whole(r.Layers) {
		r = nil // what is damaged is fetched anew
	}
	s.mu.Unlock()
	if moved {
		err = s.save()
	}
	return im, r != nil, err
}

// fits refuses an image whose layers, still compressed, are more than the disk takes.
func (s *Store) fits(w *wanted) error {
	free, err := freeSpace(s.staging())
	if err != nil {
		return nil //nolint:nilerr // writing will tell
	}
	missing := int64(0)
	s.mu.Lock()
	for _, b := range w.layers {
		here := false
		for _, l := range s.t.Layers {
			here = here || l.Diff == b.diff
		}
		if !here {
			missing += min(b.size, 1<<50)
		}
	}
	s.mu.Unlock()
	if missing > free {
		err := fault.New(fault.Exhausted, "image %s: its layers have %d bytes, the disk has %d free", w.id, missing, free)
		return fault.Hint(err, "free space below the runtime's root")
	}
	return nil
}

// linger keeps the layers of a pull that failed for the next try, if that may go better.
func (s *Store) linger(held []string, why error) {
	drop := func() {
		s.unhold(held)
		if err := s.Sweep(); err != nil {
			slog.Error("layers of a failed pull stay until the next start", "err", err)
		}
	}
	if len(held) == 0 || !fault.Is(why, fault.Temporary) && !errors.Is(why, context.Canceled) && !errors.Is(why, context.DeadlineExceeded) {
		drop()
		return
	}
	s.tasks.Go("layers of a failed pull", func(ctx context.Context) {
		select {
		case <-time.After(keepPartial):
			drop()
		case <-ctx.Done(): // the next start drops them
		}
	})
}

// fetcher finds this node's manifest below what a reference names.
type fetcher struct {
	ctx    context.Context
	src    Source
	seen   int
	passed []string // platforms that are not ours
}

// document is all that tells an index from a manifest. The content decides: media types are not always right.
type document struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
	Config        *ocispec.Descriptor  `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
	FSLayers      json.RawMessage      `json:"fsLayers"`
}

// readDocument refuses what could be read in two ways. Source: CVE-2021-41190, OCI image-spec manifest.md.
func readDocument(name string, data []byte) (document, error) {
	var d document
	if len(data) > maxDocument {
		return d, fault.New(fault.Invalid, "%s: %d bytes, at most %d are read", name, len(data), maxDocument)
	}
	if err := decode(name, data, &d); err != nil {
		return d, err
	}
	switch {
	case d.FSLayers != nil || d.SchemaVersion == 1:
		err := fault.New(fault.Invalid, "%s: a manifest of schema 1, which was given up in 2019", name)
		return d, fault.Hint(err, "push the image again with a current tool")
	case d.Manifests != nil && (d.Config != nil || d.Layers != nil):
		return d, fault.New(fault.Invalid, "%s: an index and a manifest in one, which is forbidden", name)
	case d.Manifests == nil && d.Config == nil:
		return d, fault.New(fault.Invalid, "%s: neither an index nor a manifest", name)
	case len(d.Manifests) > maxManifests:
		return d, fault.New(fault.Invalid, "%s: %d manifests, at most %d are read", name, len(d.Manifests), maxManifests)
	case len(d.Layers) > maxLayers:
		return d, fault.New(fault.Invalid, "%s: %d layers, at most %d can be stacked", name, len(d.Layers), maxLayers)
	}
	return d, nil
}

func (f *fetcher) top(sum digest.Digest, data []byte) (*wanted, error) {
	w, err := f.document(sum, data, 0)
	if err == nil && w == nil {
		err = fault.New(fault.Invalid, "%s: no image for linux/%s in it", sum, runtime.GOARCH)
		err = fault.Hint(err, "it has: %s", strings.Join(f.passed[:min(len(f.passed), 20)], ", "))
	}
	return w, err
}

// document follows an index or reads a manifest; nil if it is not for this node.
func (f *fetcher) document(sum digest.Digest, data []byte, depth int) (*wanted, error) {
	if err := verify(sum.String(), data, sum); err != nil {
		return nil, err
	}
	d, err := readDocument(sum.String(), data)
	if err != nil {
		return nil, err
	}
	if d.Manifests == nil {
		return f.manifest(sum, d)
	}
	if depth >= maxNesting {
		return nil, fault.New(fault.Invalid, "%s: more than %d indexes within each other", sum, maxNesting)
	}
	for _, m := range f.candidates(d.Manifests) {
		if f.seen++; f.seen > maxGuesses {
			return nil, fault.New(fault.Invalid, "%s: %d manifests looked at, none is for linux/%s", sum, maxGuesses, runtime.GOARCH)
		}
		if _, err := blobName(m.Digest); err != nil {
			return nil, err
		}
		data, err := f.src.Manifest(f.ctx, m.Digest)
		if err != nil {
			return nil, err
		}
		if w, err := f.document(m.Digest, data, depth+1); w != nil || err != nil {
			return w, err
		}
	}
	return nil, nil
}

// candidates are the manifests that may be for this node, the best first: what says that it is for any machine of our
// kind, then what wants more of the processor and gets it, then what says nothing.
// An image is the same on all nodes of a kind, as with other runtimes: so the most special is not taken first.
func (f *fetcher) candidates(list []ocispec.Descriptor) []ocispec.Descriptor {
	var ranks [4][]ocispec.Descriptor
	for _, d := range list {
		switch {
		case d.Annotations[attestationMark] != "":
		case d.Platform == nil:
			ranks[3] = append(ranks[3], d)
		case !runs(*d.Platform) || d.Platform.OS == "" || d.Platform.Architecture == "" || !able(d.Platform.Variant):
			f.passed = append(f.passed, strings.TrimSuffix(d.Platform.OS+"/"+d.Platform.Architecture+"/"+d.Platform.Variant, "/"))
		case d.Platform.Variant == "" || d.Platform.Variant == "v1" || d.Platform.Variant == "v8" && runtime.GOARCH == "arm64":
			ranks[0] = append(ranks[0], d)
		case d.Platform.Variant == "v2":
			ranks[1] = append(ranks[1], d)
		default:
			ranks[2] = append(ranks[2], d)
		}
	}
	return slices.Concat(ranks[:]...)
}

// able says whether this processor runs a variant. Source: x86-64 psABI, "micro-architecture levels".
func able(variant string) bool {
	if runtime.GOARCH != "amd64" {
		return true // the kernel tells at exec
	}
	v2 := cpu.X86.HasCX16 && cpu.X86.HasPOPCNT && cpu.X86.HasSSE3 && cpu.X86.HasSSSE3 && cpu.X86.HasSSE41 && cpu.X86.HasSSE42
	v3 := v2 && cpu.X86.HasAVX2 && cpu.X86.HasBMI1 && cpu.X86.HasBMI2 && cpu.X86.HasFMA
	switch variant {
	case "", "v1":
		return true
	case "v2":
		return v2
	case "v3":
		return v3
	}
	return false
}

// configKinds are the configurations of container images; what else has a manifest (charts, signatures) cannot be run.
var configKinds = []string{ocispec.MediaTypeImageConfig, "application/vnd.docker.container.image.v1+json", "application/octet-stream", ""}

func (f *fetcher) manifest(sum digest.Digest, d document) (*wanted, error) {
	if !slices.Contains(configKinds, d.Config.MediaType) {
		err := fault.New(fault.Invalid, "%s: not a container image, but %q", sum, d.Config.MediaType)
		return nil, fault.Hint(err, "it is an artifact of another kind, such as a chart or a signature")
	}
	if _, err := blobName(d.Config.Digest); err != nil {
		return nil, err
	}
	data, err := f.src.Config(f.ctx, *d.Config)
	if err != nil {
		return nil, err
	}
	if err := verify(d.Config.Digest.String(), data, d.Config.Digest); err != nil {
		return nil, err
	}
	w := &wanted{id: d.Config.Digest, manifest: sum}
	if err := decode(d.Config.Digest.String(), data, &w.config); err != nil {
		return nil, err
	}
	if !runs(w.config.Platform) {
		f.passed = append(f.passed, w.config.OS+"/"+w.config.Architecture)
		return nil, nil
	}
	for _, l := range d.Layers {
		if _, err := blobName(l.Digest); err != nil {
			return nil, err
		}
		if strings.HasSuffix(l.MediaType, "+encrypted") {
			return nil, fault.New(fault.Unsupported, "layer %s is encrypted, which this build cannot undo", l.Digest)
		}
		open := func(ctx context.Context) (io.ReadCloser, error) { return f.src.Layer(ctx, l) }
		w.layers = append(w.layers, blob{name: l.Digest.String(), digest: l.Digest, size: l.Size, open: open})
	}
	if err := w.match(d.Config.Digest.String()); err != nil {
		return nil, err
	}
	return w, nil
}

// Ref is an image's name in its parts.
type Ref struct {
	Registry, Repository string
	Tag                  string // empty if there is a digest
	Digest               digest.Digest
}

// Parse spells a name out: "web" is docker.io, library/web, latest. Errors: Invalid.
func Parse(ref string) (Ref, error) {
	repo, rest, err := repository(ref)
	if err != nil {
		return Ref{}, fault.New(fault.Invalid, "image name %q: %w", ref, err)
	}
	var r Ref
	r.Registry, r.Repository, _ = strings.Cut(repo, "/")
	if sum, ok := strings.CutPrefix(rest, "@"); ok {
		r.Digest = digest.Digest(sum)
		if r.Digest.Algorithm() != digest.SHA256 {
			return Ref{}, fault.New(fault.Invalid, "image name %q: only sha256 digests are known here", ref)
		}
	} else {
		r.Tag = strings.TrimPrefix(rest, ":")
	}
	return r, nil
}

func (r Ref) String() string {
	if r.Digest != "" {
		return fmt.Sprintf("%s/%s@%s", r.Registry, r.Repository, r.Digest)
	}
	return fmt.Sprintf("%s/%s:%s", r.Registry, r.Repository, r.Tag)
}
