package certificate

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	certificates "k8s.io/api/certificates/v1"
	v1 "k8s.io/api/core/v1"

	"worknode/kube"
)

// Serving keeps the certificate that the kubelet's server shows, signed by the cluster. addresses are the node's, asked at
// each look; Kick when they change. The cluster issues it only once a person or a controller has approved the request.
// Source: KEP-266; signer kubernetes.io/kubelet-serving.
func Serving(dir, node string, client *kube.Client, addresses func() []v1.NodeAddress) *Keeper {
	return Open(Config{
		Dir: dir, Name: "kubelet-server", Signer: certificates.KubeletServingSignerName,
		Client: func() (*kube.Client, error) { return client, nil },
		Want: func() *x509.CertificateRequest {
			want := &x509.CertificateRequest{Subject: subject(node)}
			want.DNSNames, want.IPAddresses = hosts(addresses())
			if len(want.IPAddresses) == 0 {
				return nil // the signer refuses requests without
			}
			return want
		},
	})
}

// hosts sorts a node's addresses into names and IPs.
func hosts(list []v1.NodeAddress) (names []string, ips []net.IP) {
	seen := map[string]bool{}
	for _, a := range list {
		if a.Address == "" || seen[a.Address] {
			continue
		}
		seen[a.Address] = true
		if ip := net.ParseIP(a.Address); ip != nil {
			ips = append(ips, ip)
		} else {
			names = append(names, a.Address)
		}
	}
	return names, ips
}

const selfSignedFor = 365 * 24 * time.Hour

// SelfSigned is a certificate that nobody vouches for, for a server that has no other: its issuer says so. It is kept in dir
// as kubelet.crt and kubelet.key, and made anew when it is about to end.
func SelfSigned(dir, host string, ips []string) (*tls.Certificate, error) {
	certFile, keyFile := filepath.Join(dir, "kubelet.crt"), filepath.Join(dir, "kubelet.key")
	if pair, err := tls.LoadX509KeyPair(certFile, keyFile); err == nil && time.Now().Before(pair.Leaf.NotAfter.Add(-selfSignedFor/12)) {
		return &pair, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	c := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: host, OrganizationalUnit: []string{"self-signed by this kubelet"}},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(selfSignedFor), DNSNames: []string{host},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	for _, text := range ips {
		if ip := net.ParseIP(text); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	certPEM, keyPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	err = os.MkdirAll(dir, 0o700)
	if err == nil {
		err = durable(keyFile, keyPEM)
	}
	if err == nil {
		err = durable(certFile, certPEM)
	}
	if err != nil {
		return nil, fmt.Errorf("self-signed serving certificate: %w", err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	return &pair, err
}
