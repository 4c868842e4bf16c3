package certificate

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"worknode/kube"
)

func node(t *testing.T, c *cluster) Node {
	dir := t.TempDir()
	return Node{Name: "n", Kubeconfig: filepath.Join(dir, "kubelet.conf"), Bootstrap: c.bootstrap(dir), Dir: filepath.Join(dir, "pki"), Rotate: true, Agent: "test"}
}

func soon(t *testing.T, within time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), within)
	t.Cleanup(cancel)
	return ctx
}

// Certificates that are due within five seconds and end within eight: the client is renewed several times, and no request
// fails meanwhile.
func TestRotationUnderTraffic(t *testing.T) {
	c := startCluster(t, 8*time.Second)
	c.age = 14 * time.Second // so that none is due the moment it is issued: certificates tell whole seconds
	n := node(t, c)
	client, keeper, err := Join(soon(t, 10*time.Second), n)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); keeper.Run(ctx) }()
	asked, failed := 0, 0
	for deadline := time.After(30 * time.Second); ; asked++ {
		renewed, _ := keeper.Count()
		if renewed >= 4 { // the first, and three rotations
			break
		}
		select {
		case <-deadline:
			t.Fatalf("%d certificates in 30 s", renewed)
		case <-time.After(5 * time.Millisecond):
		}
		// A connection may be given up under a request: whoever asks, asks again.
		err := client.Get(ctx, kube.Nodes, "", "n", &v1.Node{})
		if err != nil {
			err = client.Get(ctx, kube.Nodes, "", "n", &v1.Node{})
		}
		if err != nil {
			failed++
			t.Errorf("request %d: %v", asked, err)
		}
	}
	stop()
	<-ended
	if failed > 0 || asked < 100 {
		t.Errorf("%d of %d requests failed", failed, asked)
	}
	if _, as := c.requests(); as[0] != "bootstrap" || slices.Contains(as[1:], "bootstrap") {
		t.Errorf("requests came from %v: only the first is the bootstrap credential's", as)
	}
	if files, _ := filepath.Glob(n.Dir + "/kubelet-client-2*.pem"); len(files) > 2 {
		t.Errorf("old certificates stay: %v", files)
	}
}

func TestRestartNeedsNoBootstrap(t *testing.T) {
	c := startCluster(t, time.Hour)
	n := node(t, c)
	if _, _, err := Join(soon(t, 10*time.Second), n); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(n.Bootstrap); err != nil {
		t.Fatal(err)
	}
	client, _, err := Join(soon(t, 10*time.Second), n)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Get(t.Context(), kube.Nodes, "", "n", &v1.Node{}); err != nil {
		t.Error(err)
	}
	if n, _ := c.requests(); n != 1 {
		t.Errorf("%d requests", n)
	}
}

func TestExpiryHealsWithABootstrapCredential(t *testing.T) {
	c := startCluster(t, time.Second)
	n := node(t, c)
	if _, _, err := Join(soon(t, 10*time.Second), n); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond) // it is the clock that is tested
	kept := n
	kept.Bootstrap = ""
	if _, _, err := Join(soon(t, 10*time.Second), kept); err == nil || !strings.Contains(err.Error(), "the clock says") || !strings.Contains(err.Error(), "kubeadm token create") {
		t.Errorf("without a bootstrap credential: %v", err)
	}
	c.set(func(c *cluster) { c.life = time.Hour })
	client, _, err := Join(soon(t, 10*time.Second), n)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Get(t.Context(), kube.Nodes, "", "n", &v1.Node{}); err != nil {
		t.Error(err)
	}
}

func TestRefusalsAreTold(t *testing.T) {
	c := startCluster(t, time.Hour)
	c.set(func(c *cluster) { c.deny = true })
	n := node(t, c)
	k := Open(Config{Dir: n.Dir, Name: "kubelet-client", Signer: "kubernetes.io/kube-apiserver-client-kubelet",
		Want:   func() *x509.CertificateRequest { return &x509.CertificateRequest{Subject: subject("n")} },
		Client: func() (*kube.Client, error) { return kube.Open(n.Bootstrap, "test") }})
	err := k.renew(t.Context())
	if err == nil || !strings.Contains(err.Error(), "denied: Policy not you") {
		t.Errorf("denied: %v", err)
	}
	c.set(func(c *cluster) { c.deny, c.silent = false, true })
	client, err := k.Client()
	if err != nil {
		t.Fatal(err)
	}
	key, err := k.store.pendingKey()
	if err != nil {
		t.Fatal(err)
	}
	_, err = askFor(t.Context(), client, k.Signer, k.Want(), key, 300*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "kubectl certificate approve node-csr-") {
		t.Errorf("never approved: %v", err)
	}
	// Asked again with the same key, it is the same request, and whoever approves it now is heard.
	before, _ := c.requests()
	done := make(chan error, 1)
	go func() {
		_, err := askFor(t.Context(), client, k.Signer, k.Want(), key, 10*time.Second)
		done <- err
	}()
	c.set(func(c *cluster) { c.silent = false })
	c.mu.Lock()
	last := c.asked[len(c.asked)-1]
	c.mu.Unlock()
	c.decide(last)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if after, _ := c.requests(); after != before {
		t.Errorf("%d new requests for the same key", after-before)
	}
}

func TestServingCertificateFollowsTheAddresses(t *testing.T) {
	c := startCluster(t, time.Hour)
	n := node(t, c)
	client, _, err := Join(soon(t, 10*time.Second), n)
	if err != nil {
		t.Fatal(err)
	}
	at := make(chan []v1.NodeAddress, 1)
	addresses := []v1.NodeAddress{{Type: v1.NodeHostName, Address: "n"}}
	k := Serving(n.Dir, "n", client, func() []v1.NodeAddress {
		select {
		case addresses = <-at:
		default:
		}
		return addresses
	})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go k.Run(ctx)
	for i, ip := range []string{"192.0.2.1", "192.0.2.2"} {
		at <- []v1.NodeAddress{{Type: v1.NodeHostName, Address: "n"}, {Type: v1.NodeInternalIP, Address: ip}}
		k.Kick()
		deadline := time.After(10 * time.Second)
		for {
			if have := k.Current(); have != nil && len(have.Leaf.IPAddresses) == 1 && have.Leaf.IPAddresses[0].String() == ip {
				break
			}
			select {
			case <-deadline:
				t.Fatalf("no certificate for address %d, %s", i, ip)
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
}

func TestBrokenFileIsReplaced(t *testing.T) {
	c := startCluster(t, time.Hour)
	n := node(t, c)
	if err := os.MkdirAll(n.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{n.Dir + "/kubelet-client-current.pem", n.Dir + "/kubelet-client.key.tmp", n.Kubeconfig} {
		if err := os.WriteFile(file, []byte("rubbish"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	client, _, err := Join(soon(t, 10*time.Second), n)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Get(t.Context(), kube.Nodes, "", "n", &v1.Node{}); err != nil {
		t.Error(err)
	}
}

func TestWhenToRenew(t *testing.T) {
	begin := time.Unix(0, 0)
	c := &x509.Certificate{NotBefore: begin, NotAfter: begin.Add(1000 * time.Second)}
	for dice, want := range map[float64]time.Duration{0: 700, 0.5: 800, 0.999: 900} {
		if got := due(c, dice).Sub(begin).Round(time.Second); got != want*time.Second {
			t.Errorf("dice %v: after %v, want %v", dice, got, want*time.Second)
		}
	}
}

func TestFits(t *testing.T) {
	ip := net.ParseIP("192.0.2.1")
	have := &x509.Certificate{Subject: pkix.Name{CommonName: "system:node:n", Organization: []string{"system:nodes", "more"}}, DNSNames: []string{"n", "m"}, IPAddresses: []net.IP{ip.To4()}}
	for _, c := range []struct {
		want x509.CertificateRequest
		fits bool
	}{
		{x509.CertificateRequest{Subject: subject("n")}, true},
		{x509.CertificateRequest{Subject: subject("n"), DNSNames: []string{"n"}, IPAddresses: []net.IP{ip}}, true},
		{x509.CertificateRequest{Subject: subject("m")}, false},
		{x509.CertificateRequest{Subject: subject("n"), DNSNames: []string{"x"}}, false},
		{x509.CertificateRequest{Subject: subject("n"), IPAddresses: []net.IP{net.ParseIP("192.0.2.2")}}, false},
	} {
		if got := fits(have, &c.want); got != c.fits {
			t.Errorf("%+v: %v", c.want, got)
		}
	}
}
