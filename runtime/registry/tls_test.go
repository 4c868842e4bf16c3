package registry

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority signs certificates and leaves them in files.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.make("ca", &x509.Certificate{
		Subject: pkix.Name{CommonName: "the authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	})
	return a
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// make writes NAME.pem and NAME.key.
func (a *authority) make(name string, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber = big.NewInt(1)
	parent, signer := c, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{a.file(name + ".pem"): {Type: "CERTIFICATE", Bytes: der}, a.file(name + ".key"): {Type: "PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return made, key
}

func (a *authority) serve(name string, c *x509.Certificate, config *tls.Config) (host string) {
	a.t.Helper()
	c.Subject = pkix.Name{CommonName: name}
	a.make(name, c)
	pair, err := tls.LoadX509KeyPair(a.file(name+".pem"), a.file(name+".key"))
	if err != nil {
		a.t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "{}") }))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	config.Certificates = []tls.Certificate{pair}
	s.TLS = config
	s.StartTLS()
	a.t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func TestCertificates(t *testing.T) {
	a := newAuthority(t)
	a.make("client", &x509.Certificate{NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	ips := []net.IP{net.IPv4(127, 0, 0, 1)}
	good := func() *x509.Certificate {
		return &x509.Certificate{NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: ips}
	}
	expired := good()
	expired.NotAfter = time.Now().Add(-time.Minute)
	elsewhere := good()
	elsewhere.IPAddresses, elsewhere.DNSNames = nil, []string{"elsewhere.example"}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	mutual := &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	ca := "ca = \"" + a.file("ca.pem") + "\"\n"
	tests := []struct {
		name, host, keys string
		want             []string // of the error; none: it works
	}{
		{"sound", a.serve("sound", good(), &tls.Config{}), ca, nil},
		{"an authority nobody knows", a.serve("stranger", good(), &tls.Config{}), "", []string{`"CN=stranger"`, `issued by "CN=the authority"`, `ca = "FILE"`}},
		{"not verified", a.serve("unverified", expired, &tls.Config{}), "skip_verify = true", nil},
		{"expired", a.serve("expired", expired, &tls.Config{}), ca, []string{`"CN=expired"`, "valid from", "expired", "this node's clock"}},
		{"another host's", a.serve("elsewhere", elsewhere, &tls.Config{}), ca, []string{`"CN=elsewhere"`, "another host"}},
		{"wants ours", a.serve("mutual", good(), mutual), ca, []string{"client = [["}},
		{"wants ours and gets it", a.serve("mutual2", good(), mutual), ca + `client = [["` + a.file("client.pem") + `", "` + a.file("client.key") + `"]]`, nil},
		{"speaks no TLS", plain.Listener.Addr().String(), "", []string{"does not speak TLS", `server = "http://127.0.0.1`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			certs := t.TempDir()
			file := filepath.Join(certs, "reg.example", "hosts.toml")
			if err := os.Mkdir(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte("server = \"https://"+tt.host+"\"\n"+tt.keys), 0o644); err != nil {
				t.Fatal(err)
			}
			r, err := New(Options{CertsDirs: []string{certs}, Stall: 2 * time.Second}).Open(Ref{Registry: "reg.example", Repository: "a", Tag: "1"}, Credentials{})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			_, _, err = r.Top(t.Context())
			if tt.want == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			for _, text := range append(tt.want, tt.host, file) {
				if err == nil || !strings.Contains(err.Error(), text) {
					t.Errorf("got %v, want %q in it", err, text)
				}
			}
		})
	}
}

// A registry on this machine may speak TLS or not, with whatever certificate.
func TestARegistryOnThisMachineNeedsNoConfiguration(t *testing.T) {
	a := newAuthority(t)
	secret := a.serve("local", &x509.Certificate{NotAfter: time.Now().Add(-time.Minute)}, &tls.Config{})
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "{}") }))
	defer plain.Close()
	for _, host := range []string{secret, plain.Listener.Addr().String()} {
		r, err := New(Options{Stall: 2 * time.Second}).Open(Ref{Registry: host, Repository: "a", Tag: "1"}, Credentials{})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err = r.Top(t.Context()); err != nil {
			t.Error(err)
		}
		r.Close()
	}
}

func TestAFileThatIsMissingIsNamed(t *testing.T) {
	certs := t.TempDir()
	for keys, want := range map[string]string{`ca = "no.pem"`: "no.pem", `ca = "hosts.toml"`: "holds no certificate", `client = "no.pem"`: "no.pem"} {
		file := filepath.Join(certs, "reg.example", "hosts.toml")
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(keys), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := New(Options{CertsDirs: []string{certs}}).Open(Ref{Registry: "reg.example", Repository: "a", Tag: "1"}, Credentials{})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: got %v", keys, err)
		}
	}
}
