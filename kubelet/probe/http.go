package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"worknode/fault"
)

// httpGetter makes httpGet probes. Every probe opens its own connection: a kept one would hide that a server
// no longer accepts any.
type httpGetter struct{ transport *http.Transport }

func newHTTPGetter() *httpGetter {
	return &httpGetter{&http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return dial(ctx, addr, 0) },
		// Probes ask whether a server answers, not who it is; pods rarely have certificates for their address.
		TLSClientConfig:        &tls.Config{InsecureSkipVerify: true},
		DisableKeepAlives:      true,
		DisableCompression:     true, // so that no Accept-Encoding is sent that the user did not ask for
		MaxResponseHeaderBytes: 64 << 10,
	}}
}

// get makes one GET. Any answer from 200 to 399 is a success; a redirect is followed while it stays on the host.
func (g *httpGetter) get(ctx context.Context, t *Target, h *v1.HTTPGetAction, timeout time.Duration) outcome {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := request(ctx, t, h)
	if err != nil {
		return outcome{err: err}
	}
	client := http.Client{Transport: g.transport, CheckRedirect: stayOnHost}
	resp, err := client.Do(req)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("Get %q: no answer within %v: %w", req.URL, timeout, context.DeadlineExceeded)
		}
		return outcome{verdict: Failure, output: err.Error()}
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, outputMax))
	switch {
	case err != nil:
		return outcome{verdict: Failure, output: fmt.Sprintf("Get %q: reading the body: %v", req.URL, err)}
	case resp.StatusCode < 200 || resp.StatusCode >= 400:
		return outcome{verdict: Failure, output: fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode)}
	case resp.StatusCode >= 300:
		return outcome{verdict: Success, warning: true, output: fmt.Sprintf("Probe terminated redirects, Response body: %s", body)}
	default:
		return outcome{verdict: Success, output: string(body)}
	}
}

func stayOnHost(req *http.Request, via []*http.Request) error {
	if req.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	return nil
}

func request(ctx context.Context, t *Target, h *v1.HTTPGetAction) (*http.Request, error) {
	port, err := portOf(h.Port, t.Container)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(h.Path)
	if err != nil { // not a URL reference; the server may still know it
		u = &url.URL{Path: h.Path}
	}
	u.Scheme = strings.ToLower(string(h.Scheme))
	if u.Scheme == "" {
		u.Scheme = "http"
	}
	u.Host = net.JoinHostPort(hostOr(h.Host, t.PodIP), strconv.Itoa(port))
	if !strings.HasPrefix(u.Path, "/") {
		u.Path = "/" + u.Path
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fault.New(fault.Invalid, "container %s: %s probe: %w", t.Key.Container, t.Kind, err)
	}
	for _, hd := range h.HTTPHeaders {
		if strings.EqualFold(hd.Name, "Host") {
			req.Host = hd.Value
			continue
		}
		req.Header.Add(hd.Name, hd.Value)
	}
	agentAndAccept(req.Header)
	return req, nil
}

// agentAndAccept fills in our own headers; an empty one set by the user means: send none.
func agentAndAccept(h http.Header) {
	for name, value := range map[string]string{"User-Agent": userAgent, "Accept": "*/*"} {
		set, given := h[name]
		switch {
		case !given:
			h.Set(name, value)
		case name == "Accept" && len(set) == 1 && set[0] == "":
			h.Del(name)
		}
	}
}
