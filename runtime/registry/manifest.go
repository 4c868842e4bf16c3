package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"worknode/fault"
)

// MaxDocument bounds a manifest, an index and a configuration, in bytes. Source: OCI distribution-spec ("at least 4 MiB").
const MaxDocument = 4 << 20

// accepted are the documents that we can use.
const accepted = ocispec.MediaTypeImageIndex + ", application/vnd.docker.distribution.manifest.list.v2+json, " +
	ocispec.MediaTypeImageManifest + ", application/vnd.docker.distribution.manifest.v2+json, */*"

// Resolve asks what the reference means at this moment, without fetching it, and so also whether we may have it at all;
// empty if the host does not say. Registries that count pulls do not count this.
func (r *Repository) Resolve(ctx context.Context) (digest.Digest, error) {
	var out digest.Digest
	err := r.try(ctx, time.Now().Add(r.opt.Stall), r.knows, func(h *host) error {
		ctx, stop := context.WithTimeout(ctx, r.opt.Stall)
		defer stop()
		reply, err := r.ask(ctx, h, http.MethodHead, "manifests/"+r.ref.target(), accepted, 0)
		if err != nil {
			return err
		}
		reply.Body.Close()
		out = digest.Digest(reply.Header.Get("Docker-Content-Digest"))
		if out.Validate() != nil {
			out = ""
		}
		return nil
	})
	if err == nil && r.ref.Digest != "" {
		out = r.ref.Digest
	}
	return out, err
}

// knows says whether a host may be asked for what the reference names.
func (r *Repository) knows(h *host) bool {
	if r.ref.Digest != "" {
		return h.pull
	}
	return h.resolve
}

// Top returns what the reference names: a manifest or an index, with its digest.
// Errors: NotFound, Denied, Temporary, or Invalid if no host serves a document of this digest.
func (r *Repository) Top(ctx context.Context) (digest.Digest, []byte, error) {
	data, err := r.document(ctx, r.knows, "manifests/"+r.ref.target(), accepted, r.ref.Digest)
	if err != nil {
		return "", nil, err
	}
	return digest.FromBytes(data), data, nil
}

// Manifest returns a manifest or index by its digest, checked.
func (r *Repository) Manifest(ctx context.Context, d digest.Digest) ([]byte, error) {
	return r.document(ctx, func(h *host) bool { return h.pull }, "manifests/"+d.String(), accepted, d)
}

// Tagged returns what another tag of the repository names.
func (r *Repository) Tagged(ctx context.Context, tag string) ([]byte, error) {
	return r.document(ctx, func(h *host) bool { return h.resolve }, "manifests/"+tag, accepted, "")
}

// Referrers returns the index of what says something about a manifest, signatures among it.
// Errors: NotFound, or Invalid, from a registry that keeps no such list.
// Source: OCI distribution-spec 1.1, "Listing Referrers".
func (r *Repository) Referrers(ctx context.Context, d digest.Digest) ([]byte, error) {
	return r.document(ctx, func(h *host) bool { return h.resolve }, "referrers/"+d.String(), ocispec.MediaTypeImageIndex, "")
}

// Config returns an image's configuration, checked.
func (r *Repository) Config(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if d.Size > MaxDocument {
		return nil, fault.New(fault.Invalid, "configuration %s has %d bytes, at most %d are read", d.Digest, d.Size, MaxDocument)
	}
	return r.document(ctx, func(h *host) bool { return h.pull }, "blobs/"+d.Digest.String(), "", d.Digest)
}

// document fetches one document, whole, from the first host that has it as it should be.
func (r *Repository) document(ctx context.Context, fits func(*host) bool, place, accept string, want digest.Digest) (data []byte, err error) {
	err = r.try(ctx, time.Now().Add(r.opt.Stall), fits, func(h *host) error {
		ctx, stop := context.WithTimeout(ctx, r.opt.Stall)
		defer stop()
		reply, err := r.ask(ctx, h, http.MethodGet, place, accept, 0)
		if err != nil {
			return err
		}
		defer reply.Body.Close()
		data, err = io.ReadAll(io.LimitReader(reply.Body, MaxDocument+1))
		if err != nil {
			return r.explain(h, place, err)
		}
		if len(data) > MaxDocument {
			return &failure{error: fault.New(fault.Invalid, "%s: %s: more than %d bytes, which no image needs", h.url.Host, place, MaxDocument)}
		}
		if err := judge(reply, data, place, want); err != nil {
			return &failure{error: fault.As(fault.Of(err), fmt.Errorf("%s: %s: %w", h.url.Host, place, err))}
		}
		return nil
	})
	return data, err
}

// judge checks that the answer is the document asked for.
func judge(reply *http.Response, data []byte, place string, want digest.Digest) error {
	claimed := digest.Digest(reply.Header.Get("Docker-Content-Digest"))
	if want == "" && claimed.Validate() == nil && claimed.Algorithm() == digest.SHA256 {
		want = claimed
	}
	wrong := error(nil)
	if want != "" && digest.FromBytes(data) != want {
		wrong = fault.New(fault.Invalid, "its content has digest %s, it should be %s", digest.FromBytes(data), want)
	}
	if strings.HasPrefix(place, "manifests/") || wrong != nil {
		if page(reply.Header.Get("Content-Type"), data) {
			err := fault.New(fault.Temporary, "a web page came in place of a manifest")
			return fault.Hint(err, "a proxy or log-in portal stands between this node and the registry, or the host is no registry")
		}
	}
	if wrong == nil && strings.HasPrefix(place, "manifests/") && !json.Valid(data) {
		return fault.New(fault.Invalid, "no manifest came but %q", clean(string(data[:min(len(data), 60)])))
	}
	return wrong
}
