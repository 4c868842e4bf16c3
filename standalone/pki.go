package standalone

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"worknode/standalone/place"
)

// The node's own certificate authority. It signs the API's and the kubelet's serving certificates and one client
// certificate for each who may talk to them; whoever holds one of those is an administrator of this node. Keys are
// made once and kept; leaves are renewed at every start, the authority when less than a year is left.
const (
	authorityLife = 10 * 365 * 24 * time.Hour
	leafLife      = 2 * 365 * 24 * time.Hour
)

type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// who is one certificate: its subject, and the addresses that it serves under (none: a client's).
type who struct {
	file, name, group string
	hosts             []string
}

// openAuthority loads the authority below dir or makes a new one.
func openAuthority(dir string, now time.Time) (*authority, error) {
	a := &authority{dir: dir}
	key, err := loadKey(filepath.Join(dir, "ca.key"))
	if err != nil {
		return nil, err
	}
	a.key = key
	file := filepath.Join(dir, "ca.crt")
	if data, err := os.ReadFile(file); err == nil {
		if block, _ := pem.Decode(data); block != nil {
			if cert, err := x509.ParseCertificate(block.Bytes); err == nil && now.Add(authorityLife/10).Before(cert.NotAfter) && key.PublicKey.Equal(cert.PublicKey) {
				a.cert = cert
				return a, nil
			}
		}
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "worknode"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("certificate authority %s: %w", file, err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("certificate authority %s: %w", file, err)
	}
	return a, writePEM(file, "CERTIFICATE", der, 0o644)
}

// issue makes sure that dir/FILE.crt and .key hold a valid certificate for w.
func (a *authority) issue(w who, now time.Time) error {
	key, err := loadKey(filepath.Join(a.dir, w.file+".key"))
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: w.name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if w.group != "" {
		template.Subject.Organization = []string{w.group}
	}
	if len(w.hosts) > 0 {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	for _, host := range slices.Compact(slices.Sorted(slices.Values(w.hosts))) {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("certificate %s: %w", w.file, err)
	}
	return writePEM(filepath.Join(a.dir, w.file+".crt"), "CERTIFICATE", der, 0o644)
}

// loadKey reads a private key, or makes and stores one where there is none or it is broken.
func loadKey(file string) (*ecdsa.PrivateKey, error) {
	data, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("key %s: %w", file, err)
	}
	if block, _ := pem.Decode(data); block != nil {
		if key, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
			return key, nil
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", file, err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", file, err)
	}
	return key, writePEM(file, "EC PRIVATE KEY", der, 0o600)
}

func writePEM(file, kind string, der []byte, mode os.FileMode) error {
	return writeFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}

// writeFile replaces a file in one step, so that a crash leaves the old one or the new one.
func writeFile(file string, data []byte, mode os.FileMode) error {
	temp := file + ".new"
	if err := os.WriteFile(temp, data, mode); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if err := os.Rename(temp, file); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return nil
}

func serial() *big.Int {
	n, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)) // crypto/rand never returns an error
	return n
}

// writeKubeconfig writes a kubeconfig with everything inline, so that it can be copied and mailed as one file.
func writeKubeconfig(p place.Node, file, server, client string) error {
	var parts [3][]byte
	for i, name := range []string{p.CA(), p.Cert(client), p.Key(client)} {
		data, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("kubeconfig %s: %w", file, err)
		}
		parts[i] = data
	}
	text := fmt.Sprintf(kubeconfigText, encode(parts[0]), server, client, encode(parts[1]), encode(parts[2]), client)
	return writeFile(file, []byte(text), 0o600)
}

const kubeconfigText = `apiVersion: v1
kind: Config
clusters:
- name: worknode
  cluster:
    certificate-authority-data: %s
    server: %s
users:
- name: %s
  user:
    client-certificate-data: %s
    client-key-data: %s
contexts:
- name: worknode
  context:
    cluster: worknode
    user: %s
current-context: worknode
`

func encode(data []byte) string { return base64.StdEncoding.EncodeToString(data) }
