package verify

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"

	"github.com/opencontainers/go-digest"
)

// FuzzSignature reads signatures of strangers: none of them is ours.
func FuzzSignature(f *testing.F) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	r := &rule{keys: []key{{"k", &k.PublicKey}}}
	sum := digest.FromString("image")
	f.Add([]byte(`{"critical":{"type":"cosign container image signature","image":{"docker-manifest-digest":"`+sum.String()+`"}}}`), "MEUCIQ==")
	f.Add([]byte(`{"dsseEnvelope":{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"AAAA"}]}}`), "")
	f.Add([]byte(`{"dsseEnvelope":null}`), "\x00")
	f.Fuzz(func(t *testing.T, data []byte, text string) {
		if r.simple(sum, data, text) == nil || r.bundle(sum, data) == nil {
			t.Errorf("a stranger's signature holds: %q %q", data, text)
		}
	})
}
