package certificate

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	certificates "k8s.io/api/certificates/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// cluster is an API server that signs certificates and shows a Node to whoever has one.
type cluster struct {
	*httptest.Server
	t   *testing.T
	ca  *x509.Certificate
	key *ecdsa.PrivateKey

	mu      sync.Mutex
	age     time.Duration // of a certificate when it is issued
	life    time.Duration // that is left to it then
	deny    bool
	silent  bool // nobody approves
	asked   []*certificates.CertificateSigningRequest
	as      []string // who asked
	changed chan struct{}
}

const token = "abcdef.0123456789abcdef"

func startCluster(t *testing.T, life time.Duration) *cluster {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, root, root, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, ca: ca, key: key, age: time.Second, life: life, changed: make(chan struct{})}
	c.Server = httptest.NewUnstartedServer(http.HandlerFunc(c.serve))
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	c.Server.TLS = &tls.Config{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool}
	c.Server.EnableHTTP2 = true
	c.Server.StartTLS()
	t.Cleanup(func() { c.CloseClientConnections(); c.Close() })
	return c
}

// bootstrap writes the kubeconfig of the token.
func (c *cluster) bootstrap(dir string) string {
	file := filepath.Join(dir, "bootstrap.conf")
	err := clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters: map[string]*clientcmdapi.Cluster{"c": {Server: c.URL,
			CertificateAuthorityData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate().Raw})}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"u": {Token: token}},
		Contexts:       map[string]*clientcmdapi.Context{"x": {Cluster: "c", AuthInfo: "u"}},
		CurrentContext: "x",
	}, file)
	if err != nil {
		c.t.Fatal(err)
	}
	return file
}

func (c *cluster) who(r *http.Request) string {
	if chain := r.TLS.VerifiedChains; len(chain) > 0 && time.Now().Before(chain[0][0].NotAfter) {
		return chain[0][0].Subject.CommonName
	}
	if r.Header.Get("Authorization") == "Bearer "+token {
		return "bootstrap"
	}
	return ""
}

func (c *cluster) serve(w http.ResponseWriter, r *http.Request) {
	who := c.who(r)
	reply := func(code int, obj runtime.Object) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(obj)
	}
	status := func(code int, reason metav1.StatusReason) {
		reply(code, &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: reason, Code: int32(code)})
	}
	const path = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
	switch {
	case who == "":
		status(401, metav1.StatusReasonUnauthorized)
	case r.Method == "POST" && r.URL.Path == path:
		body, _ := io.ReadAll(r.Body)
		csr := &certificates.CertificateSigningRequest{}
		scheme := runtime.NewScheme()
		_ = certificates.AddToScheme(scheme)
		if _, _, err := protobuf.NewSerializer(scheme, scheme).Decode(body, nil, csr); err != nil {
			c.t.Errorf("request: %v", err)
		}
		csr.UID, csr.ResourceVersion = "u", "1"
		c.mu.Lock()
		for _, old := range c.asked {
			if old.Name == csr.Name {
				c.mu.Unlock()
				status(409, metav1.StatusReasonAlreadyExists)
				return
			}
		}
		c.asked, c.as = append(c.asked, csr), append(c.as, who)
		c.mu.Unlock()
		reply(201, typed(csr))
		c.decide(csr)
	case r.Method == "GET" && strings.HasPrefix(r.URL.Path, path+"/"):
		if csr := c.find(strings.TrimPrefix(r.URL.Path, path+"/")); csr != nil {
			reply(200, typed(csr))
			return
		}
		status(404, metav1.StatusReasonNotFound)
	case r.Method == "GET" && r.URL.Path == path:
		name := strings.TrimPrefix(r.URL.Query().Get("fieldSelector"), "metadata.name=")
		c.mu.Lock()
		changed := c.changed
		c.mu.Unlock()
		csr := c.find(name)
		if r.URL.Query().Get("watch") == "" {
			list := &certificates.CertificateSigningRequestList{TypeMeta: metav1.TypeMeta{Kind: "CertificateSigningRequestList", APIVersion: "certificates.k8s.io/v1"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"}}
			if csr != nil {
				list.Items = append(list.Items, *csr)
			}
			reply(200, list)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.(http.Flusher).Flush()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
		raw, _ := json.Marshal(typed(c.find(name)))
		_ = json.NewEncoder(w).Encode(metav1.WatchEvent{Type: "MODIFIED", Object: runtime.RawExtension{Raw: raw}})
	case strings.HasPrefix(r.URL.Path, "/api/v1/nodes/"):
		if who != "system:node:n" {
			status(403, metav1.StatusReasonForbidden)
			return
		}
		reply(200, &v1.Node{TypeMeta: metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: "n"}})
	default:
		status(404, metav1.StatusReasonNotFound)
	}
}

func typed(csr *certificates.CertificateSigningRequest) *certificates.CertificateSigningRequest {
	csr = csr.DeepCopy()
	csr.TypeMeta = metav1.TypeMeta{Kind: "CertificateSigningRequest", APIVersion: "certificates.k8s.io/v1"}
	return csr
}

func (c *cluster) find(name string) *certificates.CertificateSigningRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, csr := range c.asked {
		if csr.Name == name {
			return csr.DeepCopy()
		}
	}
	return nil
}

// decide signs or refuses a request, and tells those who watch.
func (c *cluster) decide(csr *certificates.CertificateSigningRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer func() { close(c.changed); c.changed = make(chan struct{}) }()
	csr.ResourceVersion = "2"
	switch {
	case c.silent:
	case c.deny:
		csr.Status.Conditions = []certificates.CertificateSigningRequestCondition{{Type: certificates.CertificateDenied, Status: v1.ConditionTrue, Reason: "Policy", Message: "not you"}}
	default:
		block, _ := pem.Decode(csr.Spec.Request)
		want, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			c.t.Errorf("request: %v", err)
			return
		}
		usage := x509.ExtKeyUsageClientAuth
		if csr.Spec.SignerName == certificates.KubeletServingSignerName {
			usage = x509.ExtKeyUsageServerAuth
		}
		now := time.Now()
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: want.Subject, NotBefore: now.Add(-c.age),
			NotAfter: now.Add(c.life), DNSNames: want.DNSNames, IPAddresses: want.IPAddresses, ExtKeyUsage: []x509.ExtKeyUsage{usage}}, c.ca, want.PublicKey, c.key)
		if err != nil {
			c.t.Errorf("sign: %v", err)
			return
		}
		csr.Status.Certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
}

func (c *cluster) set(change func(*cluster)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(c)
}

func (c *cluster) requests() (n int, as []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.asked), c.as
}
