package api

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"worknode/standalone/store"
)

// world is a server over TLS with a client that it knows.
type world struct {
	*testing.T
	url     string
	store   *store.Store
	server  *Server
	client  *http.Client
	ca      []byte // PEM
	cert    []byte
	key     []byte
	pool    *x509.CertPool
	clients tls.Certificate
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// issue makes a certificate; a nil parent makes an authority.
func issue(t *testing.T, template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key, der
}

func keyPEM(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pemOf("PRIVATE KEY", der)
}

func start(t *testing.T, change ...func(*Config)) *world {
	t.Helper()
	s, err := store.Open("")
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Store: s, NodeName: "node-1", ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16"), Version: "v1.37.2", Build: "test"}
	for _, f := range change {
		f(&c)
	}
	server, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, store: c.Store, server: server}
	ca, caKey, caDER := issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	_, srvKey, srvDER := issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "api"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, ca, caKey)
	_, cliKey, cliDER := issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, ca, caKey)
	w.ca, w.cert, w.key = pemOf("CERTIFICATE", caDER), pemOf("CERTIFICATE", cliDER), keyPEM(t, cliKey)
	w.pool = x509.NewCertPool()
	w.pool.AddCert(ca)
	srv := httptest.NewUnstartedServer(server)
	srv.EnableHTTP2 = true
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{srvDER}, PrivateKey: srvKey}}, ClientCAs: w.pool, ClientAuth: tls.VerifyClientCertIfGiven}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	t.Cleanup(srv.CloseClientConnections)
	w.clients = tls.Certificate{Certificate: [][]byte{cliDER}, PrivateKey: cliKey}
	w.url = srv.URL
	w.client = &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: w.pool, Certificates: []tls.Certificate{w.clients}}}}
	t.Cleanup(w.client.CloseIdleConnections)
	return w
}

// kubeconfig writes one for this server and returns its path.
func (w *world) kubeconfig() string {
	dir := w.TempDir()
	for name, data := range map[string][]byte{"ca": w.ca, "cert": w.cert, "key": w.key} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			w.Fatal(err)
		}
	}
	path := filepath.Join(dir, "kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: %q, certificate-authority: %s/ca}}]
users: [{name: u, user: {client-certificate: %s/cert, client-key: %s/key}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
`, w.url, dir, dir, dir)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.Fatal(err)
	}
	return path
}

// do sends a request; headers come as pairs. The body is JSON unless a header says otherwise.
func (w *world) do(method, path, body string, headers ...string) (int, []byte, http.Header) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, w.url+path, strings.NewReader(body))
	if err != nil {
		w.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", typeJSON)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := w.client.Do(req)
	if err != nil {
		w.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		w.Fatal(err)
	}
	return resp.StatusCode, out, resp.Header
}

// must sends a request that has to be answered with code, and returns the answer decoded.
func (w *world) must(code int, method, path, body string, headers ...string) map[string]any {
	w.Helper()
	got, out, _ := w.do(method, path, body, headers...)
	if got != code {
		w.Fatalf("%s %s: %d, want %d\n%s", method, path, got, code, out)
	}
	var doc map[string]any
	if err := json.Unmarshal(out, &doc); err != nil {
		w.Fatalf("%s %s: %v in %s", method, path, err, out)
	}
	return doc
}

// at descends into decoded JSON: "spec", "containers", 0, "image".
func at(doc any, path ...any) any {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := doc.(map[string]any)
			doc = m[p]
		case int:
			l, _ := doc.([]any)
			if p >= len(l) {
				return nil
			}
			doc = l[p]
		}
	}
	return doc
}

func (w *world) want(doc any, want any, path ...any) {
	w.Helper()
	got := at(doc, path...)
	a, _ := json.Marshal(got)
	b, _ := json.Marshal(want)
	if !bytes.Equal(a, b) {
		w.Errorf("%v is %s, want %s", path, a, b)
	}
}

const podJSON = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","labels":{"app":"web"}},"spec":{"containers":[{"name":"c","image":"img:1"}]}}`
const (
	pods     = "/api/v1/namespaces/default/pods"
	services = "/api/v1/namespaces/default/services"
)

// strangerTo is a client without a certificate.
func strangerTo(w *world) *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.pool}, DisableKeepAlives: true}}
}
