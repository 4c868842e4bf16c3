package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"worknode/fault"
)

// explain says what went wrong between us and a host, before there was an answer or while it came.
func (r *Repository) explain(h *host, what string, err error) error {
	var at *url.Error
	if errors.As(err, &at) {
		err = at.Err // it repeats the address, which may hold a token
	}
	if fault.Of(err) != fault.Unknown { // one of ours, from redirect
		return &failure{error: fault.As(fault.Of(err), fmt.Errorf("%s: %s: %w", h.url.Host, what, err))}
	}
	if e := r.explainTLS(h, err); e != nil {
		return &failure{error: e}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no whole answer within %s: %w", r.opt.Stall, err)
	}
	f := &failure{error: fault.New(fault.Temporary, "%s: %s: %w", h.url.Host, what, err), again: true}
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns): // the resolver has asked more than once
		f.again = false
		f.error = fault.Hint(f.error, "check the image's name and the node's DNS")
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		f.again = false
	}
	return f
}

// explainTLS speaks of certificates in their own words; nil if err is about something else.
func (r *Repository) explainTLS(h *host, err error) error {
	var expired x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var alert *net.OpError
	switch {
	case speaksPlain(err):
		e := fault.New(fault.Temporary, "%s: does not speak TLS", h.url.Host)
		return fault.Hint(e, `if it is meant to be used without, write server = "http://%s" into %s`, h.url.Host, h.file)
	case errors.As(err, &expired):
		e := fault.New(fault.Temporary, "%s: certificate %s: %w", h.url.Host, describe(expired.Cert), err)
		if expired.Reason == x509.Expired {
			return fault.Hint(e, "renew it, and check this node's clock; skip_verify = true in %s trusts it anyway", h.file)
		}
		return fault.Hint(e, "have it made anew; skip_verify = true in %s trusts it anyway", h.file)
	case errors.As(err, &unknown):
		e := fault.New(fault.Temporary, "%s: certificate %s: signed by an authority that this node does not know", h.url.Host, describe(unknown.Cert))
		return fault.Hint(e, `name the authority's certificate in %s: ca = "FILE"`, h.file)
	case errors.As(err, &name):
		e := fault.New(fault.Temporary, "%s: certificate %s: is for another host: %w", h.url.Host, describe(name.Certificate), err)
		return fault.Hint(e, "use a name it is for, as the image's registry or as server in %s", h.file)
	case errors.As(err, &alert) && alert.Op == "remote error": // how crypto/tls wraps an alert
		e := fault.New(fault.Temporary, "%s: refuses the TLS connection: %w", h.url.Host, err)
		return fault.Hint(e, `if it wants a client certificate, name it in %s: client = [["CERT", "KEY"]]`, h.file)
	}
	return nil
}

func describe(c *x509.Certificate) string {
	if c == nil {
		return "(unknown)"
	}
	name := c.Subject.String()
	if name == "" {
		name = strings.Join(c.DNSNames, ", ")
	}
	return fmt.Sprintf("%q (issued by %q, valid from %s to %s)", name, c.Issuer.String(), c.NotBefore.UTC().Format(time.DateOnly), c.NotAfter.UTC().Format(time.DateOnly))
}

// speaksPlain says that the other side answered our TLS greeting in clear text.
func speaksPlain(err error) bool {
	var record tls.RecordHeaderError
	return errors.As(err, &record) || err != nil && strings.Contains(err.Error(), "server gave HTTP response to HTTPS client")
}

// status says what an answer that is no success means.
func (r *Repository) status(h *host, what string, reply *http.Response, body []byte) error {
	text := fmt.Sprintf("%s: %s: %s", h.url.Host, what, reply.Status)
	if detail := problem(reply, body); detail != "" {
		text += ": " + detail
	}
	switch code := reply.StatusCode; {
	case code == http.StatusNotFound:
		return &failure{error: fault.New(fault.NotFound, "%s", text)}
	case code == http.StatusForbidden, code == http.StatusUnauthorized, code == http.StatusProxyAuthRequired:
		return &failure{error: fault.New(fault.Denied, "%s", text)}
	case code == http.StatusTooManyRequests, code == http.StatusRequestTimeout, code >= 500:
		f := &failure{error: fault.New(fault.Temporary, "%s", text), again: true, after: retryAfter(reply.Header.Get("Retry-After"), time.Now())}
		if f.after > 0 {
			f.error = fault.Hint(f.error, "it asks us to wait %s", f.after.Round(time.Second))
		}
		return f
	case code == http.StatusBadRequest && strings.Contains(string(body), "HTTP request to an HTTPS server"):
		err := fault.New(fault.Invalid, "%s: speaks TLS, and is asked without", h.url.Host)
		return &failure{error: fault.Hint(err, `write "https://%s" into %s`, h.url.Host, h.file)}
	}
	return &failure{error: fault.New(fault.Invalid, "%s", text), code: reply.StatusCode}
}

// problem finds the words in an error's body. Source: OCI distribution-spec, "Error Codes".
func problem(reply *http.Response, body []byte) string {
	var list struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &list) == nil && len(list.Errors) > 0 {
		e := list.Errors[0]
		return clean(strings.TrimPrefix(e.Code+": "+e.Message, ": "))
	}
	if page(reply.Header.Get("Content-Type"), body) {
		return "a web page, which no registry sends"
	}
	return clean(string(body))
}

// clean makes text of strangers fit for a log line.
func clean(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}

// page recognises HTML, which proxies and log-in portals send in a registry's place.
func page(kind string, body []byte) bool {
	head := strings.TrimLeft(string(body[:min(len(body), 64)]), " \t\r\n\ufeff")
	return strings.HasPrefix(kind, "text/html") || strings.HasPrefix(head, "<")
}

// retryAfter reads seconds or a date. Source: RFC 9110 section 10.2.3.
func retryAfter(s string, now time.Time) time.Duration {
	if n, err := strconv.Atoi(s); err == nil && n > 0 {
		return min(time.Duration(n), 24*3600) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil && t.After(now) {
		return min(t.Sub(now), 24*time.Hour)
	}
	return 0
}

// silence is the error of a pull in which no byte came for too long. It counts as a deadline.
type silence struct {
	limit time.Duration
	last  error // what the connections said; may be nil
}

func (e silence) Error() string {
	if e.last == nil {
		return fmt.Sprintf("no byte came for %s", e.limit)
	}
	return fmt.Sprintf("no byte came for %s; last: %v", e.limit, e.last)
}

func (silence) Is(target error) bool { return target == context.DeadlineExceeded }
