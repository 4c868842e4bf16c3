// Package registry reads images from registries: it finds out which hosts serve a registry's images (hosts.toml), logs in
// where a host asks for it, and returns manifests, configurations and layers, each checked against its digest or, for
// layers, against its length. It writes nothing, to no disk and to no registry, and knows nothing of platforms or unpacking.
//
// A layer is a stream that survives broken connections: it goes on at the byte where it stopped, on the same host or on
// the next. It is our own client and not containerd's (core/remotes/docker): that one brings 50 packages, OpenTelemetry
// among them, into each of the node's processes, cannot be told when a connection has gone silent, and its errors do not
// say what to do.
//
// Source: OCI distribution-spec 1.1; Docker "Token Authentication Specification"; containerd docs/hosts.md.
package registry

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// Ref names an image in full: nothing is left to defaults.
type Ref struct {
	Registry   string        // as in the image's name, such as docker.io or reg.example:5000
	Repository string        // such as library/web
	Tag        string        // empty if there is a digest
	Digest     digest.Digest // wins over Tag
}

func (r Ref) String() string {
	if r.Digest != "" {
		return r.Registry + "/" + r.Repository + "@" + r.Digest.String()
	}
	return r.Registry + "/" + r.Repository + ":" + r.Tag
}

// target is the last part of a manifest's path.
func (r Ref) target() string {
	if r.Digest != "" {
		return r.Digest.String()
	}
	return r.Tag
}

// Secret is a password or token. It prints as "(secret)".
type Secret string

func (Secret) String() string       { return "(secret)" }
func (Secret) GoString() string     { return "(secret)" }
func (Secret) LogValue() slog.Value { return slog.StringValue("(secret)") }

// Credentials are what a pull may show to a host that asks for them.
type Credentials struct {
	Server        string // registry they are for, as a URL or host; empty: the image's
	Username      string
	Password      Secret
	IdentityToken Secret // OAuth 2 refresh token
	RegistryToken Secret // bearer token, used as it is
}

// Options is what a client is told.
type Options struct {
	CertsDirs []string // folders that hold HOST/hosts.toml, the first that has one for a host wins
	Agent     string   // User-Agent
	// Stall is how long a pull may go on without a byte, connection attempts included; zero: a minute.
	Stall time.Duration
	// Read hears of the bytes of layers that came, as they come; nil: nobody does.
	Read func(n int)
}

// DefaultCertsDirs are the folders that other runtimes read, too.
const DefaultCertsDirs = "/etc/containerd/certs.d:/etc/docker/certs.d"

// Client makes pulls. It keeps nothing between them: hosts.toml is read anew each time, connections end with their pull.
type Client struct{ opt atomic.Pointer[Options] }

// New returns a client; it needs no closing.
func New(opt Options) *Client {
	c := &Client{}
	c.Set(opt)
	return c
}

// Set gives the client other options, for pulls that begin from now on.
func (c *Client) Set(opt Options) {
	if opt.Stall <= 0 {
		opt.Stall = time.Minute
	}
	c.opt.Store(&opt)
}

// Repository is one image's repository, during one pull. Its methods may be called from several goroutines.
type Repository struct {
	ref   Ref
	opt   Options
	login Credentials
	hosts []*host // mirrors in the order of hosts.toml, then the registry itself
}

// Open prepares a pull: it reads the configuration, and contacts nobody.
// Errors: Invalid names the file at fault. The caller closes the repository.
func (c *Client) Open(ref Ref, login Credentials) (*Repository, error) {
	opt := *c.opt.Load()
	list, err := endpoints(opt.CertsDirs, ref.Registry)
	if err != nil {
		return nil, err
	}
	r := &Repository{ref: ref, opt: opt, login: login}
	for _, e := range list {
		h, err := newHost(e, opt)
		if err != nil {
			return nil, err
		}
		h.login = login.forHost(ref.Registry, e)
		r.hosts = append(r.hosts, h)
	}
	return r, nil
}

// Close ends idle connections. Streams that are open go on until they are closed.
func (r *Repository) Close() {
	for _, h := range r.hosts {
		h.client.CloseIdleConnections()
	}
}

// forHost says what a host may see. Mirrors serve in the registry's name and get its credentials, as containerd's do,
// but not in clear text over a network.
func (c Credentials) forHost(registry string, e endpoint) Credentials {
	if c.Server != "" && canonical(c.Server) != canonical(registry) {
		return Credentials{}
	}
	if e.mirror && e.url.Scheme != "https" && !loopback(e.url.Host) {
		return Credentials{}
	}
	return c
}

// canonical reduces what people write for a registry to its host.
func canonical(server string) string {
	server = strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://")
	server, _, _ = strings.Cut(server, "/")
	switch server {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return server
}

// pause waits; it ends early with the context's cause.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
