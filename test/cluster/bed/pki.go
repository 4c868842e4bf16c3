package bed

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Authority signs the certificates of one cluster, or of its aggregation layer. Files are NAME.crt and NAME.key below Dir.
type Authority struct {
	Dir, Name string
	cert      *x509.Certificate
	key       *ecdsa.PrivateKey
}

// Subject is whom a certificate is for: a client where it has no hosts, else a server.
type Subject struct {
	Name   string
	Groups []string
	Hosts  []string      // DNS names and IP addresses
	Life   time.Duration // default a day; a negative one has expired
}

// OpenAuthority reads the authority of this name below dir, or makes one.
func OpenAuthority(dir, name string) (*Authority, error) {
	a := &Authority{Dir: dir, Name: name}
	if cert, key, err := readPair(a.file(name)); err == nil {
		a.cert, a.key = cert, key
		return a, nil
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("authority %s: %w", name, err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("authority %s: %w", name, err)
	}
	return a, writePair(a.file(name), der, a.key)
}

func (a *Authority) file(name string) string { return filepath.Join(a.Dir, name) }

// Cert and Key are the files of a certificate that Issue made, or of the authority itself.
func (a *Authority) Cert(name string) string { return a.file(name) + ".crt" }
func (a *Authority) Key(name string) string  { return a.file(name) + ".key" }

// Issue makes a certificate with a new key, replacing what has that file name.
func (a *Authority) Issue(file string, s Subject) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	if s.Life == 0 {
		s.Life = 24 * time.Hour
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: s.Name, Organization: s.Groups},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(s.Life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if len(s.Hosts) > 0 {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	for _, host := range s.Hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("certificate %s: %w", file, err)
	}
	return writePair(a.file(file), der, key)
}

// Kubeconfig writes a kubeconfig with everything inline for a certificate that Issue made.
func (a *Authority) Kubeconfig(file, server, client string) error {
	var parts [3]string
	for i, name := range []string{a.Cert(a.Name), a.Cert(client), a.Key(client)} {
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		parts[i] = base64.StdEncoding.EncodeToString(data)
	}
	return os.WriteFile(file, fmt.Appendf(nil, kubeconfig, parts[0], server, client, parts[1], parts[2], client), 0o600)
}

const kubeconfig = `apiVersion: v1
kind: Config
clusters:
- name: bed
  cluster: {certificate-authority-data: %s, server: "%s"}
users:
- name: %s
  user: {client-certificate-data: %s, client-key-data: %s}
contexts:
- name: bed
  context: {cluster: bed, user: %s}
current-context: bed
`

// accountKeys makes the pair that signs service account tokens.
func accountKeys(private, public string) error {
	if _, err := os.Stat(public); err == nil {
		return nil
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	if err := writePEM(private, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key)); err != nil {
		return err
	}
	return writePEM(public, "PUBLIC KEY", der)
}

func writePair(file string, cert []byte, key crypto.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := writePEM(file+".key", "PRIVATE KEY", der); err != nil {
		return err
	}
	return writePEM(file+".crt", "CERTIFICATE", cert)
}

func readPair(file string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	read := func(name string) []byte {
		data, _ := os.ReadFile(name)
		block, _ := pem.Decode(data)
		if block == nil {
			return nil
		}
		return block.Bytes
	}
	cert, err := x509.ParseCertificate(read(file + ".crt"))
	if err != nil {
		return nil, nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(read(file + ".key"))
	if err != nil {
		return nil, nil, err
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, nil, fmt.Errorf("%s.key is no EC key", file)
	}
	return cert, ec, nil
}

func writePEM(file, kind string, der []byte) error {
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
