// Package verify decides whether an image may come onto the node: by the registry or repository it is named after, and by
// signatures of public keys that the operator trusts. It reads cosign's three ways to keep a signature in a registry and
// needs no other service: no transparency log, no certificates. It fails closed.
//
// It is about pulls. What root imports from files, and what is on the node already, is not asked about.
//
// Source: sigstore cosign specs/SIGNATURE_SPEC.md; sigstore protobuf-specs, bundle v0.3; DSSE protocol.md;
// OCI distribution-spec 1.1, "Listing Referrers".
package verify

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"

	"worknode/fault"
)

// ErrRefused is in the chain of each error that says no.
var ErrRefused = errors.New("signature policy")

// Rule says what holds for images whose name begins with Scope, at whole parts.
type Rule struct {
	Scope string   // a registry, or a registry and repositories; empty: all that no other rule is about
	Do    string   // accept, reject, signed
	Keys  []string // PEM files
}

// Policy is a set of rules with their keys read. A nil Policy accepts all.
type Policy struct{ rules []rule }

type rule struct {
	Rule
	keys []key
}

type key struct {
	file   string
	public crypto.PublicKey
}

// maxKey bounds a key file, in bytes.
const maxKey = 64 << 10

// New reads the keys of the rules. Errors: Invalid names the file. A changed file counts at the next New.
func New(rules []Rule) (*Policy, error) {
	p := &Policy{}
	for _, r := range rules {
		one := rule{Rule: r}
		for _, file := range r.Keys {
			k, err := readKey(file)
			if err != nil {
				return nil, fault.New(fault.Invalid, "signature policy: key %s: %w", file, err)
			}
			one.keys = append(one.keys, key{file, k})
		}
		p.rules = append(p.rules, one)
	}
	return p, nil
}

func readKey(file string) (crypto.PublicKey, error) {
	st, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if st.Size() > maxKey {
		return nil, fmt.Errorf("%d bytes, at most %d are read", st.Size(), maxKey)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, errors.New("not a public key in PEM form (cosign.pub, or `openssl pkey -pubout`)")
	}
	k, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	switch k := k.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return nil, fmt.Errorf("an RSA key of %d bits, at least 2048 are wanted", k.N.BitLen())
		}
	default:
		return nil, fmt.Errorf("a key of type %T, want ECDSA, RSA or Ed25519", k)
	}
	return k, nil
}

// signed says whether a signature of the message is this key's.
func (k key) signed(message, signature []byte) bool {
	sum := sha256.Sum256(message)
	switch public := k.public.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(public, sum[:], signature)
	case ed25519.PublicKey:
		return ed25519.Verify(public, message, signature)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(public, crypto.SHA256, sum[:], signature) == nil
	}
	return false
}

// about finds the most special rule for an image's full name without tag; nil if there is none.
func (p *Policy) about(name string) *rule {
	var best *rule
	if p == nil {
		return nil
	}
	for i := range p.rules {
		r := &p.rules[i]
		if r.Scope != "" && name != r.Scope && !strings.HasPrefix(name, r.Scope+"/") {
			continue
		}
		if best == nil || len(r.Scope) > len(best.Scope) {
			best = r
		}
	}
	return best
}
