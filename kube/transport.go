package kube

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/rest"
)

// Identity gives the client certificate to present now; nil: none. It is asked at every handshake.
type Identity func() *tls.Certificate

// A peer that vanished without a word (a rebooted balancer, a dropped NAT entry) is noticed after silence + patience, and
// its connection replaced; a node's lease lasts longer than that.
const (
	silence  = 10 * time.Second // without a frame from the server, before it is asked for a sign of life
	patience = 5 * time.Second  // for the sign
	dialing  = 10 * time.Second
)

// web returns an HTTP client for cfg with connections of its own. id replaces the certificate of cfg, if not nil.
func web(cfg *rest.Config, id Identity) (*http.Client, *connections, error) {
	if cfg.Transport != nil || cfg.ExecProvider != nil || cfg.AuthProvider != nil {
		c, err := rest.HTTPClientFor(cfg) // credentials that client-go alone can get
		return c, &connections{}, err
	}
	if id == nil && cfg.CertFile != "" {
		files := &certificateFiles{cert: cfg.CertFile, key: cfg.KeyFile}
		if _, err := files.load(); err != nil {
			return nil, nil, err
		}
		id = files.current
	}
	conf, err := rest.TLSConfigFor(cfg)
	if err != nil {
		return nil, nil, err
	}
	if conf != nil && id != nil {
		conf.Certificates, conf.GetClientCertificate = nil, func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if c := id(); c != nil {
				return c, nil
			}
			return &tls.Certificate{}, nil // crypto/tls: present none
		}
	}
	conns := &connections{connect: (&net.Dialer{Timeout: dialing, KeepAlive: 15 * time.Second}).DialContext}
	if cfg.Dial != nil { // as into another network namespace
		conns.connect = cfg.Dial
	}
	proxy := http.ProxyFromEnvironment
	if cfg.Proxy != nil {
		proxy = cfg.Proxy
	}
	t := &http.Transport{
		Proxy: proxy, DialContext: conns.dial, TLSClientConfig: conf, TLSHandshakeTimeout: dialing, MaxIdleConnsPerHost: 25, IdleConnTimeout: 90 * time.Second,
		ForceAttemptHTTP2: true, HTTP2: &http.HTTP2Config{SendPingTimeout: silence, PingTimeout: patience},
	}
	conns.idle = t.CloseIdleConnections
	rt, err := rest.HTTPWrappersForConfig(cfg, renewing{t, conns})
	if err != nil {
		return nil, nil, err
	}
	return &http.Client{Transport: rt, Timeout: cfg.Timeout}, conns, nil
}

// renewing drops the connections when the server knows us no more: the next try presents the certificate of that time.
type renewing struct {
	http.RoundTripper
	conns *connections
}

func (r renewing) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := r.RoundTripper.RoundTrip(req)
	if err == nil && resp.StatusCode == http.StatusUnauthorized {
		resp.Body = &lastRead{resp.Body, r.conns.retire}
	}
	return resp, err
}

// lastRead does something once an answer's body has been read and closed.
type lastRead struct {
	io.ReadCloser
	then func()
}

func (b *lastRead) Close() error {
	err := b.ReadCloser.Close()
	b.then()
	return err
}

// connections are those that a client has open.
type connections struct {
	connect func(ctx context.Context, network, addr string) (net.Conn, error)
	idle    func()
	last    atomic.Int64 // when retire last did something, Unix nanoseconds

	mu   sync.Mutex
	open map[*connection]bool
}

type connection struct {
	net.Conn
	of *connections
}

func (c *connection) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

func (c *connections) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	raw, err := c.connect(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	one := &connection{raw, c}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = map[*connection]bool{}
	}
	c.open[one] = true
	return one, nil
}

// closeAll ends every connection, watches included: they are taken up again where they ended.
func (c *connections) closeAll() {
	c.mu.Lock()
	all := make([]*connection, 0, len(c.open))
	for one := range c.open {
		all = append(all, one)
	}
	c.mu.Unlock()
	for _, one := range all {
		_ = one.Close() // it is being given up
	}
	if c.idle != nil {
		c.idle()
	}
}

// retire is closeAll, at most once in a few seconds: a server that refuses us for good is not to be stormed.
func (c *connections) retire() {
	now := time.Now().UnixNano()
	if last := c.last.Load(); now-last > int64(5*time.Second) && c.last.CompareAndSwap(last, now) {
		c.closeAll()
	}
}

// certificateFiles reads a certificate again when its file has changed.
type certificateFiles struct {
	cert, key string

	mu   sync.Mutex
	at   time.Time
	have *tls.Certificate
}

func (f *certificateFiles) current() *tls.Certificate {
	c, _ := f.load() // the last good one stays in use
	return c
}

func (f *certificateFiles) load() (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	st, err := os.Stat(f.cert)
	if err == nil && f.have != nil && st.ModTime().Equal(f.at) {
		return f.have, nil
	}
	if err == nil {
		var pair tls.Certificate
		if pair, err = tls.LoadX509KeyPair(f.cert, f.key); err == nil {
			f.have, f.at = &pair, st.ModTime()
			return f.have, nil
		}
	}
	return f.have, fmt.Errorf("client certificate %s: %w", f.cert, err)
}
