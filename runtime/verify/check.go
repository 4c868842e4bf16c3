package verify

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"worknode/fault"
)

// What signatures are called.
const (
	simpleSigning = "application/vnd.dev.cosign.simplesigning.v1+json"
	signatureKey  = "dev.cosignproject.cosign/signature"
	simpleType    = "cosign container image signature"
	bundlePrefix  = "application/vnd.dev.sigstore.bundle"
	inToto        = "application/vnd.in-toto+json"
	signPredicate = "https://sigstore.dev/cosign/sign/v1" // a signature; other predicates say something else about an image
)

// maxSignatures bounds what is looked at for one image.
const maxSignatures = 64

// Source is the repository of an image. What it returns is of the digest asked for.
type Source interface {
	Tagged(ctx context.Context, tag string) ([]byte, error)
	Referrers(ctx context.Context, d digest.Digest) ([]byte, error)
	Manifest(ctx context.Context, d digest.Digest) ([]byte, error)
	Config(ctx context.Context, d ocispec.Descriptor) ([]byte, error) // any small blob
}

// Check says whether the image may be pulled; name is its full name without tag. One of the digests, of its manifest and
// of the index that leads there, must be signed.
// Errors: Denied with ErrRefused; Temporary, too with ErrRefused, if the registry cannot be asked.
func (p *Policy) Check(ctx context.Context, name string, src Source, sums ...digest.Digest) error {
	r := p.about(name)
	switch {
	case r == nil || r.Do == "accept":
		return nil
	case r.Do == "reject":
		err := fault.New(fault.Denied, "%w: images of %s are not welcome on this node", ErrRefused, r.named())
		return fault.Hint(err, "images.verify in the runtime's configuration says so")
	}
	s := search{ctx: ctx, rule: r, src: src}
	for _, sum := range sums {
		found, err := s.look(sum)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return fault.As(fault.Of(err), fmt.Errorf("%w: signatures of %s@%s: %w", ErrRefused, name, sum, err))
		}
		if found {
			return nil
		}
	}
	var files []string
	for _, k := range r.keys {
		files = append(files, k.file)
	}
	text := "there is none"
	if len(s.bad) > 0 {
		text = strings.Join(s.bad[:min(len(s.bad), 3)], "; ")
	}
	err := fault.New(fault.Denied, "%w: %s@%s has no signature that holds: %s", ErrRefused, name, sums[0], text)
	return fault.Hint(err, "images of %s must be signed by %s: cosign sign --key KEY IMAGE", r.named(), strings.Join(files, " or "))
}

func (r *rule) named() string {
	if r.Scope == "" {
		return "all registries"
	}
	return r.Scope
}

// search looks for one good signature.
type search struct {
	ctx  context.Context
	rule *rule
	src  Source
	seen int
	bad  []string // what was wrong with those that were found
}

// look tries all places where signatures of a digest may be.
func (s *search) look(sum digest.Digest) (bool, error) {
	// Beside the image, in a tag named after its digest.
	data, err := s.src.Tagged(s.ctx, sum.Algorithm().String()+"-"+sum.Encoded()+".sig")
	if found, err := s.manifest(sum, data, err); found || err != nil {
		return found, err
	}
	// As referrers, or in the index that stands for them where a registry has none.
	data, err = s.src.Referrers(s.ctx, sum)
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Invalid) {
		data, err = s.src.Tagged(s.ctx, sum.Algorithm().String()+"-"+sum.Encoded())
	}
	if fault.Is(err, fault.NotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		s.bad = append(s.bad, "the list of referrers is no JSON")
		return false, nil
	}
	// What calls itself a signature first: the rest, such as bills of materials, is read only because not all registries
	// pass the kind on.
	likely := func(d ocispec.Descriptor) int {
		if strings.HasPrefix(d.ArtifactType, bundlePrefix) || strings.HasPrefix(d.ArtifactType, "application/vnd.dev.cosign") {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(index.Manifests, func(a, b ocispec.Descriptor) int { return likely(a) - likely(b) })
	for _, d := range index.Manifests[:min(len(index.Manifests), maxSignatures)] {
		if d.Digest.Validate() != nil {
			continue
		}
		data, err := s.src.Manifest(s.ctx, d.Digest)
		if found, err := s.manifest(sum, data, err); found || err != nil {
			return found, err
		}
	}
	return false, nil
}

// manifest looks at the signatures in one manifest; err is what came in its place.
func (s *search) manifest(sum digest.Digest, data []byte, err error) (bool, error) {
	if fault.Is(err, fault.NotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		s.bad = append(s.bad, "a manifest of signatures is no JSON")
		return false, nil
	}
	for _, l := range m.Layers {
		if s.seen++; s.seen > maxSignatures {
			s.bad = append(s.bad, fmt.Sprintf("more than %d signatures, nobody looked any further", maxSignatures))
			return false, nil
		}
		simple := l.MediaType == simpleSigning
		if !simple && !strings.HasPrefix(l.MediaType, bundlePrefix) {
			continue
		}
		blob, err := s.src.Config(s.ctx, l)
		if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Invalid) {
			s.bad = append(s.bad, err.Error())
			continue
		}
		if err != nil {
			return false, err
		}
		if simple {
			err = s.rule.simple(sum, blob, l.Annotations[signatureKey])
		} else {
			err = s.rule.bundle(sum, blob)
		}
		if err == nil {
			return true, nil
		}
		s.bad = append(s.bad, err.Error())
	}
	return false, nil
}

// simple checks a payload that is signed as it stands. Source: cosign specs/SIGNATURE_SPEC.md, "Simple Signing".
func (r *rule) simple(sum digest.Digest, payload []byte, text string) error {
	signature, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(signature) == 0 {
		return fmt.Errorf("a payload without a signature in its annotation")
	}
	if !r.signed(payload, signature) {
		return fmt.Errorf("one is of another key")
	}
	var p struct {
		Critical struct {
			Type  string
			Image struct {
				Digest digest.Digest `json:"docker-manifest-digest"`
			}
		}
	}
	if err := json.Unmarshal(payload, &p); err != nil {
		return fmt.Errorf("a signed payload is no JSON")
	}
	if p.Critical.Type != simpleType {
		return fmt.Errorf("a signed payload is %.60q and no image signature", p.Critical.Type)
	}
	if p.Critical.Image.Digest != sum {
		return fmt.Errorf("one is of another image, %.80s", p.Critical.Image.Digest)
	}
	return nil
}

// bundle checks a sigstore bundle with a DSSE envelope.
func (r *rule) bundle(sum digest.Digest, data []byte) error {
	var b struct {
		Envelope *struct {
			Payload     []byte // base64
			PayloadType string `json:"payloadType"`
			Signatures  []struct{ Sig []byte }
		} `json:"dsseEnvelope"`
	}
	if err := json.Unmarshal(data, &b); err != nil || b.Envelope == nil {
		return fmt.Errorf("a bundle without a DSSE envelope")
	}
	e := b.Envelope
	if e.PayloadType != inToto {
		return fmt.Errorf("a bundle holds %.60q and no statement", e.PayloadType)
	}
	// Source: DSSE protocol.md, "Pre-Authentication Encoding".
	message := fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(e.PayloadType), e.PayloadType, len(e.Payload), e.Payload)
	if !slices.ContainsFunc(e.Signatures[:min(len(e.Signatures), maxSignatures)], func(s struct{ Sig []byte }) bool { return r.signed(message, s.Sig) }) {
		return fmt.Errorf("one is of another key")
	}
	var statement struct {
		PredicateType string `json:"predicateType"`
		Subject       []struct{ Digest map[string]string }
	}
	if err := json.Unmarshal(e.Payload, &statement); err != nil {
		return fmt.Errorf("a signed statement is no JSON")
	}
	if statement.PredicateType != signPredicate {
		return fmt.Errorf("a signed statement is %.80q and no signature", statement.PredicateType)
	}
	for _, subject := range statement.Subject {
		if subject.Digest[sum.Algorithm().String()] == sum.Encoded() {
			return nil
		}
	}
	return fmt.Errorf("one is of another image")
}

func (r *rule) signed(message, signature []byte) bool {
	return slices.ContainsFunc(r.keys, func(k key) bool { return k.signed(message, signature) })
}
