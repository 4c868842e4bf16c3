package image

import (
	"context"
	"io"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"worknode/fault"
)

const (
	maxLayers    = 256 // their names must fit the mount option string; Docker allows 127
	maxManifests = 1000
	maxNesting   = 4

	containerdName  = "io.containerd.image.name" // full name, written by docker save and ctr export
	dockerIndex     = "application/vnd.docker.distribution.manifest.list.v2+json"
	attestationMark = "vnd.docker.reference.type"
)

// wanted is one image of an archive, ready to be unpacked.
type wanted struct {
	id       digest.Digest
	manifest digest.Digest // empty if the archive has none
	names    []string
	config   ocispec.Image
	layers   []blob // lowest first
}

// readArchive finds the images of a docker-archive, an OCI layout, or both in one (docker save since 25).
// Of an image for several platforms it takes this node's.
func readArchive(t *bundle) ([]wanted, error) {
	_, oci := t.find("index.json")
	_, docker := t.find("manifest.json")
	switch {
	case oci:
		list, err := readOCI(t)
		if err != nil {
			return nil, err
		}
		if docker {
			return list, nameFromDocker(t, list)
		}
		return list, nil
	case docker:
		return readDocker(t)
	}
	err := fault.New(fault.Invalid, "neither manifest.json (docker-archive) nor index.json (OCI layout) is in it")
	return nil, fault.Hint(err, "write it with docker save, skopeo copy, or worknode's tools/image")
}

// dockerManifest is one element of manifest.json.
// Source: moby image/spec v1.2, "Combined Image JSON + Filesystem Changeset Format".
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func readDocker(t *bundle) ([]wanted, error) {
	list, err := dockerManifests(t)
	if err != nil {
		return nil, err
	}
	var out []wanted
	for _, m := range list {
		data, err := t.document(m.Config)
		if err != nil {
			return nil, err
		}
		w := wanted{id: digest.FromBytes(data), names: m.RepoTags}
		// The entry is named by its digest, in one of several spellings; other names promise nothing.
		hex := strings.TrimPrefix(strings.TrimSuffix(path.Base(m.Config), ".json"), "sha256:")
		if d := digest.NewDigestFromEncoded(digest.SHA256, hex); d.Validate() == nil {
			if err := verify(m.Config, data, d); err != nil {
				return nil, err
			}
		}
		if err := decode(m.Config, data, &w.config); err != nil {
			return nil, err
		}
		for _, name := range m.Layers {
			w.layers = append(w.layers, blob{name: name, open: func(context.Context) (io.ReadCloser, error) { return t.open(name) }})
		}
		if err := w.match(m.Config); err != nil {
			return nil, err
		}
		out = append(out, w)
	}
	return out, nil
}

func dockerManifests(t *bundle) ([]dockerManifest, error) {
	data, err := t.document("manifest.json")
	if err != nil {
		return nil, err
	}
	var list []dockerManifest
	if err := decode("manifest.json", data, &list); err != nil {
		return nil, err
	}
	if len(list) == 0 || len(list) > maxManifests {
		return nil, fault.New(fault.Invalid, "manifest.json: %d images, 1 to %d expected", len(list), maxManifests)
	}
	return list, nil
}

// nameFromDocker adds the names that manifest.json gives to images which the OCI index beside it leaves unnamed.
func nameFromDocker(t *bundle, list []wanted) error {
	docker, err := dockerManifests(t)
	if err != nil {
		return err
	}
	for i := range list {
		for _, m := range docker {
			hex := strings.TrimSuffix(path.Base(m.Config), ".json")
			if hex != list[i].id.Encoded() {
				continue
			}
			for _, name := range m.RepoTags {
				if !slices.Contains(list[i].names, name) {
					list[i].names = append(list[i].names, name)
				}
			}
		}
	}
	return nil
}

// match ties layers to the diff ids of the configuration and checks that this node can run the image at all.
func (w *wanted) match(name string) error {
	ids := w.config.RootFS.DiffIDs
	if len(ids) != len(w.layers) {
		return fault.New(fault.Invalid, "entry %q: names %d layers, the manifest %d", name, len(ids), len(w.layers))
	}
	if len(ids) > maxLayers {
		return fault.New(fault.Invalid, "entry %q: %d layers, at most %d can be stacked", name, len(ids), maxLayers)
	}
	for i, d := range ids {
		if _, err := blobName(d); err != nil {
			return fault.New(fault.Invalid, "entry %q: layer %d: %w", name, i+1, err)
		}
		w.layers[i].diff = d
	}
	if !runs(w.config.Platform) {
		return fault.New(fault.Invalid, "entry %q: the image is for %s/%s, this node is linux/%s", name, w.config.OS, w.config.Architecture, runtime.GOARCH)
	}
	return nil
}

// runs says whether the platform is this node's; what an image leaves open is no obstacle.
func runs(p ocispec.Platform) bool {
	return (p.OS == "" || p.OS == "linux") && (p.Architecture == "" || p.Architecture == runtime.GOARCH)
}

func readOCI(t *bundle) ([]wanted, error) {
	data, err := t.document("index.json")
	if err != nil {
		return nil, err
	}
	r := ociReader{t: t}
	if err := r.index("index.json", data, nil, 0); err != nil {
		return nil, err
	}
	if len(r.out) == 0 {
		err := fault.New(fault.Invalid, "index.json: no image for linux/%s in it", runtime.GOARCH)
		return nil, fault.Hint(err, "it has: %s", strings.Join(r.passed, ", "))
	}
	return r.out, nil
}

type ociReader struct {
	t      *bundle
	seen   int
	out    []wanted
	passed []string // platforms of images we left out
}

// index reads an index and those below it. names come from the descriptors above.
func (r *ociReader) index(name string, data []byte, names []string, depth int) error {
	var ix ocispec.Index
	if err := decode(name, data, &ix); err != nil {
		return err
	}
	for _, d := range ix.Manifests {
		if r.seen++; r.seen > maxManifests || depth > maxNesting {
			return fault.New(fault.Invalid, "entry %q: more than %d manifests or %d nested indexes", name, maxManifests, maxNesting)
		}
		if err := r.descriptor(d, append(slices.Clone(names), ociNames(d)...), depth); err != nil {
			return err
		}
	}
	return nil
}

func (r *ociReader) descriptor(d ocispec.Descriptor, names []string, depth int) error {
	if d.Annotations[attestationMark] != "" {
		return nil
	}
	if d.Platform != nil && !runs(*d.Platform) {
		r.passed = append(r.passed, d.Platform.OS+"/"+d.Platform.Architecture)
		return nil
	}
	data, err := r.t.blob(d.Digest)
	if err != nil {
		return err
	}
	if d.MediaType == ocispec.MediaTypeImageIndex || d.MediaType == dockerIndex {
		return r.index(d.Digest.String(), data, names, depth+1)
	}
	return r.manifest(d, data, names)
}

func (r *ociReader) manifest(d ocispec.Descriptor, data []byte, names []string) error {
	var m ocispec.Manifest
	if err := decode(d.Digest.String(), data, &m); err != nil {
		return err
	}
	config, err := r.t.blob(m.Config.Digest)
	if err != nil {
		return err
	}
	w := wanted{id: m.Config.Digest, manifest: d.Digest, names: names}
	if err := decode(m.Config.Digest.String(), config, &w.config); err != nil {
		return err
	}
	if d.Platform == nil && !runs(w.config.Platform) {
		r.passed = append(r.passed, w.config.OS+"/"+w.config.Architecture)
		return nil
	}
	for _, l := range m.Layers {
		name, err := blobName(l.Digest)
		if err != nil {
			return err
		}
		w.layers = append(w.layers, blob{name: name, digest: l.Digest, open: func(context.Context) (io.ReadCloser, error) { return r.t.open(name) }})
	}
	if err := w.match(m.Config.Digest.String()); err != nil {
		return err
	}
	r.out = append(r.out, w)
	return nil
}

// ociNames are the image names that a descriptor carries. The standard annotation may be a bare tag, which names nothing.
// Source: OCI image-spec annotations.md, org.opencontainers.image.ref.name.
func ociNames(d ocispec.Descriptor) []string {
	if n := d.Annotations[containerdName]; n != "" {
		return []string{n}
	}
	if n := d.Annotations[ocispec.AnnotationRefName]; strings.ContainsAny(n, ":/") {
		return []string{n}
	}
	return nil
}
