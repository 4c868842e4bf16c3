package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"

	"worknode/fault"
)

// caller is the key under which guard leaves who asked, for the log of streams.
type caller struct{}

// guard lets a request through to h if its caller is known and allowed. verb is what the request counts as; empty: what its
// method means. One of subs, the subresources of nodes, is enough.
// Source: Kubernetes docs, kubelet authorization.
func (s *Server) guard(verb string, subs []string, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		who, err := s.Access.Who(r)
		if err != nil {
			s.count.unauthorized.Add(1)
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		act := verb
		if act == "" {
			act = verbOf(r.Method)
		}
		if err := s.Access.May(r.Context(), who, act, subs...); err != nil {
			if !fault.Is(err, fault.Denied) {
				slog.Warn("kubelet server cannot check rights", "err", err)
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			s.count.forbidden.Add(1)
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		s.count.requests.Add(1)
		h(w, r.WithContext(context.WithValue(r.Context(), caller{}, who.Name)))
	}
}

// verbOf maps a method as the API server does.
func verbOf(method string) string {
	switch method {
	case http.MethodPost:
		return "create"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		return "delete"
	default:
		return "get"
	}
}

// tlsFiles serves with the certificate and the client CA that are in the files now: a handshake compares their times
// with those last read, which costs three stats and needs no restart after a rotation.
type tlsFiles struct {
	cert, key, ca string
	base          *tls.Config             // may be nil
	shown         func() *tls.Certificate // instead of cert and key; may be nil

	mu   sync.Mutex
	have [3]stamp
	conf *tls.Config
}

type stamp struct {
	size, mtime int64
	name        string
}

func (f *tlsFiles) listener(l net.Listener) net.Listener {
	return tls.NewListener(l, &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return f.load()
		},
	})
}

// load returns the present configuration. When changed files cannot be used it keeps the last good ones and logs once.
func (f *tlsFiles) load() (*tls.Config, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, err := f.stamps()
	if err == nil && f.conf != nil && now == f.have { // without any file the stamps are the same from the start
		return f.conf, nil
	}
	var conf *tls.Config
	if err == nil {
		conf, err = f.read()
	}
	switch {
	case err == nil:
		f.conf, f.have = conf, now
		return conf, nil
	case f.conf == nil:
		return nil, err
	}
	if now != f.have {
		f.have = now
		slog.Warn("kubelet server keeps its last certificates", "err", err)
	}
	return f.conf, nil
}

func (f *tlsFiles) stamps() (out [3]stamp, err error) {
	for i, name := range []string{f.cert, f.key, f.ca} {
		if name == "" {
			continue
		}
		var st fs.FileInfo
		if st, err = os.Stat(name); err != nil {
			return [3]stamp{}, err
		}
		out[i] = stamp{st.Size(), st.ModTime().UnixNano(), name}
	}
	return out, nil
}

func (f *tlsFiles) read() (*tls.Config, error) {
	pool := x509.NewCertPool()
	if f.ca != "" {
		pem, err := os.ReadFile(f.ca)
		if err != nil {
			return nil, err
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fault.New(fault.Invalid, "client CA %s holds no PEM certificate", f.ca)
		}
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.base != nil {
		conf = f.base.Clone()
	}
	if f.shown != nil {
		conf.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.shown(), nil }
	} else {
		pair, err := tls.LoadX509KeyPair(f.cert, f.key)
		if err != nil {
			return nil, fmt.Errorf("serving certificate %s with key %s: %w", f.cert, f.key, err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	conf.ClientCAs, conf.ClientAuth = pool, tls.VerifyClientCertIfGiven // without a certificate there is still /healthz
	// HTTP/1.1 alone: exec and its kin switch protocols on the connection, which HTTP/2 cannot.
	conf.NextProtos = []string{"http/1.1"}
	return conf, nil
}

// quietLog sends net/http's complaints (handshakes of port scanners, mostly) to the debug level.
func quietLog() *log.Logger { return log.New(debugWriter{}, "", 0) }

type debugWriter struct{}

func (debugWriter) Write(p []byte) (int, error) {
	slog.Debug("kubelet server", "says", string(bytes.TrimSpace(p)))
	return len(p), nil
}
