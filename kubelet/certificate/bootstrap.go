package certificate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	certificates "k8s.io/api/certificates/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"worknode/fault"
	"worknode/kube"
)

// Node is how a kubelet becomes and stays known to its cluster.
type Node struct {
	Name       string // of the node
	Kubeconfig string // file; written by the first start with a bootstrap credential
	Bootstrap  string // kubeconfig with a credential that may only ask for a certificate; may be empty, or its file gone
	Dir        string // of certificates
	Rotate     bool   // renew the client certificate
	Agent      string // names the caller in the server's logs
}

// Join returns the kubelet's client. With a bootstrap credential and no valid certificate it first asks for one, and waits
// until it is issued. keeper renews the client certificate; nil if it is not ours to renew.
// Errors: what a person has to mend, such as an expired certificate without a bootstrap credential.
func Join(ctx context.Context, n Node) (client *kube.Client, keeper *Keeper, err error) {
	if !n.Rotate && n.Bootstrap == "" {
		client, err = kube.Open(n.Kubeconfig, n.Agent)
		return client, nil, err
	}
	var mu sync.Mutex // guards main, which exists only after the first certificate
	var main *kube.Client
	keeper = Open(Config{
		Dir: n.Dir, Name: "kubelet-client", Signer: certificates.KubeAPIServerClientKubeletSignerName,
		Want:    func() *x509.CertificateRequest { return &x509.CertificateRequest{Subject: subject(n.Name)} },
		Changed: func(*tls.Certificate) { mu.Lock(); defer mu.Unlock(); reconnect(main) },
	})
	cfg, own, err := n.config()
	if err != nil {
		return nil, nil, err
	}
	identity := func() *tls.Certificate {
		if have := keeper.Current(); usable(have, time.Now()) || own == nil {
			return have
		}
		return own
	}
	keeper.Client = func() (*kube.Client, error) {
		mu.Lock()
		defer mu.Unlock()
		if main != nil && usable(identity(), time.Now()) {
			return main, nil
		}
		return n.bootstrapClient(identity())
	}
	if !usable(identity(), time.Now()) {
		if _, err := keeper.Client(); err != nil {
			return nil, nil, err // nobody to ask as: waiting would not help
		}
		slog.Info("asking the cluster for a client certificate", "node", n.Name, "as", n.Bootstrap)
		if err := keeper.Ensure(ctx); err != nil {
			return nil, nil, err
		}
	}
	if cfg == nil {
		if cfg, err = n.writeKubeconfig(keeper.File()); err != nil {
			return nil, nil, err
		}
	}
	cfg.UserAgent = n.Agent
	client, err = kube.ForIdentity(cfg, identity)
	mu.Lock()
	defer mu.Unlock()
	main = client
	return client, keeper, err
}

func reconnect(c *kube.Client) {
	if c != nil {
		c.Reconnect()
	}
}

func subject(node string) pkix.Name {
	return pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}}
}

// config reads the kubeconfig: how to reach the server, and the certificate in it. Both are nil if the file is not there, or
// cannot be used while there is a bootstrap credential to make another with.
func (n Node) config() (*rest.Config, *tls.Certificate, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", n.Kubeconfig)
	var own *tls.Certificate
	if err == nil {
		own, err = certificateIn(cfg)
	}
	_, absent := os.Stat(n.Kubeconfig)
	switch {
	case err == nil:
		return cfg, own, nil
	case n.Bootstrap == "":
		return nil, nil, fmt.Errorf("kubeconfig %s: %w", n.Kubeconfig, err)
	case !errors.Is(absent, fs.ErrNotExist):
		slog.Warn("the kubeconfig cannot be used, a new one is made with the bootstrap credential", "file", n.Kubeconfig, "err", err)
	}
	return nil, nil, nil
}

// certificateIn is the client certificate of a configuration, nil if it has none, or its file is not there yet.
func certificateIn(cfg *rest.Config) (*tls.Certificate, error) {
	if err := rest.LoadTLSFiles(cfg); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	if len(cfg.CertData) == 0 {
		return nil, nil
	}
	pair, err := tls.X509KeyPair(cfg.CertData, cfg.KeyData)
	return &pair, err
}

// bootstrapClient calls as whoever the bootstrap kubeconfig says. have is the certificate that cannot be used any more.
func (n Node) bootstrapClient(have *tls.Certificate) (*kube.Client, error) {
	hint := "make a bootstrap kubeconfig with a fresh token (kubeadm token create) and name it with --bootstrap-kubeconfig"
	why := fault.New(fault.Denied, "client certificate of node %s: %s", n.Name, left(have, time.Now()))
	if have != nil && have.Leaf != nil && time.Now().Before(have.Leaf.NotBefore) {
		why = fault.New(fault.Denied, "client certificate of node %s begins only at %s, the clock says %s", n.Name, have.Leaf.NotBefore.UTC().Format(time.RFC3339), time.Now().UTC().Format(time.RFC3339))
		hint = "set the machine's clock"
	}
	if n.Bootstrap == "" {
		return nil, fault.Hint(why, "%s", hint)
	}
	client, err := kube.Open(n.Bootstrap, n.Agent)
	if err != nil {
		return nil, fault.Hint(fmt.Errorf("%w, and no bootstrap credential: %w", why, err), "%s", hint)
	}
	return client, nil
}

// writeKubeconfig makes the kubeconfig that leads to the bootstrap credential's server with our certificate.
func (n Node) writeKubeconfig(pem string) (*rest.Config, error) {
	boot, err := clientcmd.BuildConfigFromFlags("", n.Bootstrap)
	if err != nil {
		return nil, fmt.Errorf("bootstrap kubeconfig %s: %w", n.Bootstrap, err)
	}
	cluster := &clientcmdapi.Cluster{Server: boot.Host, InsecureSkipTLSVerify: boot.Insecure, CertificateAuthority: boot.CAFile}
	if boot.CAFile == "" {
		cluster.CertificateAuthorityData = boot.CAData
	}
	text, err := clientcmd.Write(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"default-cluster": cluster},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"default-auth": {ClientCertificate: pem, ClientKey: pem}},
		Contexts:       map[string]*clientcmdapi.Context{"default-context": {Cluster: "default-cluster", AuthInfo: "default-auth", Namespace: "default"}},
		CurrentContext: "default-context",
	})
	if err != nil {
		return nil, err
	}
	next := n.Kubeconfig + ".next"
	if err := os.MkdirAll(filepath.Dir(n.Kubeconfig), 0o755); err != nil {
		return nil, err
	}
	if err := durable(next, text); err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	if err := os.Rename(next, n.Kubeconfig); err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	return clientcmd.BuildConfigFromFlags("", n.Kubeconfig)
}
