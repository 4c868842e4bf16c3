package certificate

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"worknode/fault"
)

// store keeps one certificate with its key in a folder: a file for each generation, and a link NAME-current.pem to the
// newest, which kubeconfigs and people look at.
type store struct{ dir, name string }

func (s store) current() string { return filepath.Join(s.dir, s.name+"-current.pem") }

// load reads the current certificate. Errors: NotFound if there is none; Invalid if the file is broken.
func (s store) load() (*tls.Certificate, error) {
	text, err := os.ReadFile(s.current())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.As(fault.NotFound, err)
	}
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, fault.New(fault.Invalid, "certificate %s: %w", s.current(), err)
	}
	return &pair, nil
}

// save makes a certificate the current one. A crash leaves the old one or the new one in force.
func (s store) save(chain []byte, key crypto.Signer, now time.Time) (*tls.Certificate, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	text.Write(chain)
	if !bytes.HasSuffix(chain, []byte("\n")) {
		text.WriteByte('\n')
	}
	if err := pem.Encode(&text, &pem.Block{Type: "PRIVATE KEY", Bytes: der}); err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(text.Bytes(), text.Bytes())
	if err != nil {
		return nil, fault.New(fault.Invalid, "the issued certificate: %w", err)
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	file := filepath.Join(s.dir, fmt.Sprintf("%s-%s.pem", s.name, now.Format("2006-01-02-15-04-05")))
	if err := durable(file, text.Bytes()); err != nil {
		return nil, err
	}
	next := s.current() + ".next"
	_ = os.Remove(next) // of a crash
	if err := os.Symlink(filepath.Base(file), next); err != nil {
		return nil, err
	}
	if err := os.Rename(next, s.current()); err != nil {
		return nil, err
	}
	s.prune(file)
	return &pair, nil
}

// prune removes all generations but the newest two: whoever still reads the last one may finish.
func (s store) prune(newest string) {
	files, err := filepath.Glob(filepath.Join(s.dir, s.name+"-2*.pem"))
	if err != nil {
		return
	}
	for i, file := range files { // sorted, as their times are
		if i < len(files)-2 && file != newest {
			_ = os.Remove(file) // it stays, and goes next time
		}
	}
}

// durable writes a file that is whole after a power cut, or not there.
func durable(file string, data []byte) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// pendingKey is the key of a request that has not been answered, kept so that a kubelet that restarts asks again for the
// same key, and finds the request that it has already made.
func (s store) pendingKey() (crypto.Signer, error) {
	file := filepath.Join(s.dir, s.name+".key.tmp")
	text, err := os.ReadFile(file)
	if err == nil {
		if block, _ := pem.Decode(text); block != nil {
			if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
				if signer, ok := key.(crypto.Signer); ok {
					return signer, nil
				}
			}
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	return key, durable(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// dropKey forgets the key of an answered request.
func (s store) dropKey() { _ = os.Remove(filepath.Join(s.dir, s.name+".key.tmp")) }
