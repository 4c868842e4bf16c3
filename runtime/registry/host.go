package registry

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"worknode/fault"
)

const (
	dialLimit   = 10 * time.Second // to a connection; IPv4 is tried 0.3 s after IPv6 (RFC 8305)
	tlsLimit    = 10 * time.Second
	answerLimit = 30 * time.Second // from the request to the first byte of the answer
	maxHops     = 10               // redirects
)

// host is an endpoint with a connection pool and what we learned about it during this pull.
type host struct {
	endpoint
	client *http.Client
	login  Credentials

	mu     sync.Mutex
	scheme string // http once a registry on this machine turned out not to speak TLS
	auth   string // Authorization header, from the last log-in
	bad    bool   // served wrong content
}

func newHost(e endpoint, opt Options) (*host, error) {
	config, err := e.tls()
	if err != nil {
		return nil, fault.New(fault.Invalid, "registry configuration %s: %s: %w", e.file, e.url.Host, err)
	}
	dial := e.dial
	if dial == 0 {
		dial = min(dialLimit, opt.Stall)
	}
	h := &host{endpoint: e, scheme: e.url.Scheme}
	h.client = &http.Client{CheckRedirect: redirect, Transport: &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: dial, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    min(tlsLimit, opt.Stall),
		ResponseHeaderTimeout:  min(answerLimit, opt.Stall),
		MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize:         64 << 10,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        10 * time.Second,
		DisableCompression:     true,                                                   // content is named by the digest of its bytes as they are
		TLSNextProto:           map[string]func(string, *tls.Conn) http.RoundTripper{}, // HTTP/1.1: layers do not share a window
	}}
	return h, nil
}

func (e *endpoint) tls() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: e.skipVerify}
	if len(e.ca) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			return nil, err
		}
		for _, f := range e.ca {
			data, err := os.ReadFile(f)
			if err != nil {
				return nil, err
			}
			if !pool.AppendCertsFromPEM(data) {
				return nil, errors.New(f + " holds no certificate in PEM form")
			}
		}
		config.RootCAs = pool
	}
	for _, p := range e.pairs {
		cert, err := tls.LoadX509KeyPair(p[0], p[1])
		if err != nil {
			return nil, err
		}
		config.Certificates = append(config.Certificates, cert)
	}
	return config, nil
}

// redirect follows to where a registry keeps its blobs. What was meant for the registry stays with the registry: its
// credentials, and headers of hosts.toml. Source: RFC 9110 section 15.4; CVE-2020-15157.
func redirect(next *http.Request, via []*http.Request) error {
	first := via[0]
	if len(via) >= maxHops {
		return fault.New(fault.Invalid, "more than %d redirects, the last to %s", maxHops, next.URL.Host)
	}
	if next.URL.Scheme != "https" && next.URL.Scheme != "http" {
		return fault.New(fault.Invalid, "redirect to %q, which is no web address", next.URL.Scheme)
	}
	for _, v := range via {
		if *v.URL == *next.URL && v.Method == next.Method {
			return fault.New(fault.Invalid, "redirects in a circle, to %s", next.URL.Host)
		}
	}
	// A blob is checked against its digest however it came; what a tag means is only as good as the connection.
	if first.URL.Scheme == "https" && next.URL.Scheme == "http" && strings.Contains(first.URL.Path, "/manifests/") {
		return fault.New(fault.Denied, "redirect from https to http://%s refused", next.URL.Host)
	}
	if next.URL.Host == first.URL.Host && next.URL.Scheme == first.URL.Scheme {
		return nil
	}
	keep := http.Header{}
	for _, name := range []string{"Accept", "Range", "User-Agent"} {
		if v := first.Header.Values(name); len(v) > 0 {
			keep[name] = v
		}
	}
	next.Header = keep
	return nil
}
