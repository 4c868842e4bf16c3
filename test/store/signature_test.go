package store

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/test/harness"
)

// signer makes signatures as cosign does.
type signer struct {
	key  crypto.Signer
	file string // of the public key
}

func newSigner(t *testing.T, kind string) signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch kind {
	case "ecdsa":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "rsa":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	data, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), kind+".pub")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: data}), 0o644); err != nil {
		t.Fatal(err)
	}
	return signer{key, file}
}

func (s signer) sign(t *testing.T, message []byte) []byte {
	t.Helper()
	var out []byte
	var err error
	if _, plain := s.key.(ed25519.PrivateKey); plain {
		out, err = s.key.Sign(rand.Reader, message, crypto.Hash(0))
	} else {
		sum := sha256.Sum256(message)
		out, err = s.key.Sign(rand.Reader, sum[:], crypto.SHA256)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// raw is a document that a test wrote itself.
type raw struct {
	data []byte
	kind types.MediaType
}

func (r raw) RawManifest() ([]byte, error)        { return r.data, nil }
func (r raw) MediaType() (types.MediaType, error) { return r.kind, nil }

// attach puts one blob as the only layer of an artifact: under a tag, or as a referrer of an image.
func (s *shop) attach(repo, tag string, subject *v1.Descriptor, artifact, kind string, blob []byte, annotations map[string]string) {
	s.t.Helper()
	s.blob(repo, blob)
	s.blob(repo, []byte("{}"))
	m := map[string]any{
		"schemaVersion": 2, "mediaType": string(types.OCIManifestSchema1), "artifactType": artifact,
		"config": map[string]any{"mediaType": "application/vnd.oci.empty.v1+json", "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a", "size": 2},
		"layers": []any{map[string]any{"mediaType": kind, "digest": fmt.Sprintf("sha256:%x", sha256.Sum256(blob)), "size": len(blob), "annotations": annotations}},
	}
	if subject != nil {
		m["subject"] = map[string]any{"mediaType": string(subject.MediaType), "digest": subject.Digest.String(), "size": subject.Size}
	}
	data, err := json.Marshal(m)
	if err != nil {
		s.t.Fatal(err)
	}
	if tag == "" {
		tag = fmt.Sprintf("sha256:%x", sha256.Sum256(data))
	}
	s.put(repo, tag, raw{data, types.OCIManifestSchema1})
}

const cosignSigning = "application/vnd.dev.cosign.simplesigning.v1+json"

func simplePayload(digest string) []byte {
	return []byte(`{"critical":{"identity":{"docker-reference":""},"image":{"docker-manifest-digest":"` + digest + `"},"type":"cosign container image signature"},"optional":null}`)
}

// besides signs in a tag beside the image, as cosign did for years.
func (s signer) besides(shop *shop, repo string, d v1.Hash, payload []byte) {
	note := map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(s.sign(shop.t, payload))}
	shop.attach(repo, "sha256-"+d.Hex+".sig", nil, "", cosignSigning, payload, note)
}

// bundled signs in a sigstore bundle that refers to the image, as cosign 3 does.
func (s signer) bundled(shop *shop, repo string, d v1.Descriptor, predicate string) {
	shop.t.Helper()
	statement := fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"%s"}}],"predicateType":"%s","predicate":{}}`, d.Digest.Hex, predicate)
	const kind = "application/vnd.in-toto+json"
	message := fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(kind), kind, len(statement), statement)
	bundle, err := json.Marshal(map[string]any{
		"mediaType":    "application/vnd.dev.sigstore.bundle.v0.3+json",
		"dsseEnvelope": map[string]any{"payload": statement, "payloadType": kind, "signatures": []any{map[string]any{"sig": s.sign(shop.t, message)}}},
	})
	if err != nil {
		shop.t.Fatal(err)
	}
	shop.attach(repo, "", &d, "application/vnd.dev.sigstore.bundle.v0.3+json", "application/vnd.dev.sigstore.bundle.v0.3+json", bundle, nil)
}

func describe(t *testing.T, what interface {
	Digest() (v1.Hash, error)
	Size() (int64, error)
	MediaType() (types.MediaType, error)
}) v1.Descriptor {
	t.Helper()
	d, err := what.Digest()
	if err != nil {
		t.Fatal(err)
	}
	size, err := what.Size()
	if err != nil {
		t.Fatal(err)
	}
	kind, err := what.MediaType()
	if err != nil {
		t.Fatal(err)
	}
	return v1.Descriptor{Digest: d, Size: size, MediaType: kind}
}

func TestOnlyWhatIsSignedIsPulled(t *testing.T) {
	s := openShop(t)
	ec, rs, ed, stranger := newSigner(t, "ecdsa"), newSigner(t, "rsa"), newSigner(t, "ed25519"), newSigner(t, "ecdsa")
	rules := fmt.Sprintf("[[images.verify]]\nscope = '%s/team'\ndo = 'signed'\nkeys = ['%s', '%s', '%s']\n[[images.verify]]\nscope = '%[1]s/team/free'\ndo = 'accept'\n[[images.verify]]\nscope = '%[1]s/bad'\ndo = 'reject'\n",
		s.host(), ec.file, rs.file, ed.file)
	n := boot(t, rules)
	const sign = "https://sigstore.dev/cosign/sign/v1"
	next := 0
	fresh := func() v1.Image { next++; return image(t, layer(t, next, 1, 100, nil)) }
	for _, c := range []struct {
		name string
		sign func(repo string, im v1.Image, d v1.Descriptor)
		want string // what the refusal says; empty: pulled
	}{
		{"tag-ecdsa", func(repo string, _ v1.Image, d v1.Descriptor) {
			ec.besides(s, repo, d.Digest, simplePayload(d.Digest.String()))
		}, ""},
		{"tag-rsa", func(repo string, _ v1.Image, d v1.Descriptor) {
			rs.besides(s, repo, d.Digest, simplePayload(d.Digest.String()))
		}, ""},
		{"tag-ed25519", func(repo string, _ v1.Image, d v1.Descriptor) {
			ed.besides(s, repo, d.Digest, simplePayload(d.Digest.String()))
		}, ""},
		{"bundle", func(repo string, _ v1.Image, d v1.Descriptor) { ec.bundled(s, repo, d, sign) }, ""},
		{"referrer", func(repo string, _ v1.Image, d v1.Descriptor) {
			p := simplePayload(d.Digest.String())
			s.attach(repo, "", &d, "application/vnd.dev.cosign.artifact.sig.v1+json", cosignSigning, p,
				map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(rs.sign(t, p))})
		}, ""},
		{"unsigned", func(string, v1.Image, v1.Descriptor) {}, "there is none"},
		{"stranger", func(repo string, _ v1.Image, d v1.Descriptor) {
			stranger.besides(s, repo, d.Digest, simplePayload(d.Digest.String()))
		}, "another key"},
		{"stranger-bundle", func(repo string, _ v1.Image, d v1.Descriptor) { stranger.bundled(s, repo, d, sign) }, "another key"},
		{"of-another-image", func(repo string, _ v1.Image, d v1.Descriptor) {
			ec.besides(s, repo, d.Digest, simplePayload("sha256:"+strings.Repeat("0", 64)))
		}, "another image"},
		{"attestation", func(repo string, _ v1.Image, d v1.Descriptor) { ec.bundled(s, repo, d, "https://spdx.dev/Document") }, "no signature"},
		{"other-type", func(repo string, _ v1.Image, d v1.Descriptor) {
			ec.besides(s, repo, d.Digest, []byte(strings.Replace(string(simplePayload(d.Digest.String())), "cosign container", "some", 1)))
		}, "no image signature"},
		{"changed-payload", func(repo string, _ v1.Image, d v1.Descriptor) {
			note := map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(ec.sign(t, []byte("{}")))}
			s.attach(repo, "sha256-"+d.Digest.Hex+".sig", nil, "", cosignSigning, simplePayload(d.Digest.String()), note)
		}, "another key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			im := fresh()
			ref := s.push("team/"+c.name+":1", im)
			c.sign("team/"+c.name, im, describe(t, im))
			out, errs, code := n.images("pull", ref)
			switch {
			case c.want == "" && code != 0:
				t.Errorf("refused: %s", errs)
			case c.want != "" && (code == 0 || !strings.Contains(errs, c.want) || !strings.Contains(errs, "must be signed by "+ec.file)):
				t.Errorf("exit %d, want %q and the keys: %s%s", code, c.want, out, errs)
			}
			if c.want != "" && strings.Contains(n.must(), ref) {
				t.Error("an image that was refused is listed")
			}
		})
	}

	// An index that is signed as a whole, and one of which only this node's manifest is.
	im := fresh()
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: im, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch()}}})
	whole, part := s.push("team/index:1", index), s.push("team/part:1", index)
	ec.bundled(s, "team/index", describe(t, index), sign)
	ec.bundled(s, "team/part", describe(t, im), sign)
	n.must("pull", whole)
	n.must("pull", part)
	n.must("pull", part)

	n.must("pull", s.push("team/free/x:1", fresh()))
	n.must("pull", s.push("other/x:1", fresh()))
	if _, errs, code := n.images("pull", s.push("bad/x:1", fresh())); code == 0 || !strings.Contains(errs, "not welcome") {
		t.Errorf("exit %d: %s", code, errs)
	}

	// A registry that cannot be asked for signatures: closed, with its own words.
	broken := fresh()
	ref := s.push("team/broken:1", broken)
	s.bend(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, ".sig") {
			http.Error(w, "out of order", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
	if _, errs, code := n.images("pull", ref); code == 0 || !strings.Contains(errs, "out of order") {
		t.Errorf("exit %d: %s", code, errs)
	}
	s.bend(nil)

	// The kubelet's word for it.
	conn, err := grpc.NewClient("unix://"+n.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = cri.NewImageServiceClient(conn).PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	if status.Code(err) != codes.Unknown || !strings.HasPrefix(status.Convert(err).Message(), "SignatureValidationFailed: ") {
		t.Errorf("over CRI: %v", err)
	}

	// A stricter policy counts for what is here already, from the reload on.
	n.extra = "[[images.verify]]\nscope = ''\ndo = 'reject'\n"
	n.configure()
	if err := n.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	harness.Until(t, "the new policy holds", harness.Slow(10*time.Second), func() bool {
		_, errs, code := n.images("pull", whole)
		return code != 0 && strings.Contains(errs, "not welcome")
	})
	n.nothingLeft(len(n.entries("l")))
}
