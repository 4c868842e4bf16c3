package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"worknode/fault"
)

const (
	maxRounds  = 5                      // times that all hosts are asked for one thing
	firstPause = 300 * time.Millisecond // between rounds; it doubles
	maxProblem = 16 << 10               // bytes of an error's body
)

// ask sends one request to h and logs in if h wants it. The answer has status 200 or 206; the caller closes its body.
// place is what follows the repository's name in the path; from is the first byte wanted.
func (r *Repository) ask(ctx context.Context, h *host, method, place, accept string, from int64) (*http.Response, error) {
	for loggedIn := false; ; {
		h.mu.Lock()
		auth, scheme := h.auth, h.scheme
		h.mu.Unlock()
		if auth == "" && h.login.RegistryToken != "" {
			auth = "Bearer " + string(h.login.RegistryToken)
		}
		request, err := r.request(ctx, h, method, scheme, place)
		if err != nil {
			return nil, err
		}
		if accept != "" {
			request.Header.Set("Accept", accept)
		}
		if from > 0 {
			request.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
		}
		if auth != "" {
			request.Header.Set("Authorization", auth)
		}
		reply, err := h.client.Do(request)
		if err != nil {
			if h.mayBePlain && scheme == "https" && speaksPlain(err) {
				h.mu.Lock()
				h.scheme = "http"
				h.mu.Unlock()
				continue
			}
			return nil, r.explain(h, place, err)
		}
		if reply.StatusCode == http.StatusOK || reply.StatusCode == http.StatusPartialContent {
			return reply, nil
		}
		data, _ := io.ReadAll(io.LimitReader(reply.Body, maxProblem))
		reply.Body.Close()
		if reply.StatusCode != http.StatusUnauthorized {
			return nil, r.status(h, place, reply, data)
		}
		if loggedIn || h.login.RegistryToken != "" {
			return nil, r.refused(h)
		}
		if err := r.logIn(ctx, h, parseChallenges(reply.Header.Values("WWW-Authenticate")), auth); err != nil {
			return nil, err
		}
		loggedIn = true
	}
}

func (r *Repository) request(ctx context.Context, h *host, method, scheme, place string) (*http.Request, error) {
	u := h.url
	u.Scheme = scheme
	u.Path += "/" + r.ref.Repository + "/" + place
	if h.mirror {
		u.RawQuery = "ns=" + r.ref.Registry // so that one mirror can serve several registries. Source: containerd docs/hosts.md
	}
	request, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, fault.New(fault.Invalid, "registry %s: %w", h.url.Host, err)
	}
	request.Header.Set("User-Agent", r.opt.Agent)
	for name, values := range h.header {
		request.Header[name] = values
	}
	return request, nil
}

// failure is an error of one host.
type failure struct {
	error
	again bool          // asking again may help
	after time.Duration // not before; zero if the host did not say
	code  int           // of the answer; zero without one
}

func (f *failure) Unwrap() error { return f.error }

// try asks the hosts in order until one serves. If none does but one of them may soon, all are asked again after a pause.
// It gives up when until has passed. fits says which hosts may be asked; nil: all.
func (r *Repository) try(ctx context.Context, until time.Time, fits func(*host) bool, fn func(h *host) error) error {
	for round := 0; ; round++ {
		var failed []error
		again, wait := false, jitter(firstPause<<round)
		for _, h := range r.trusted(fits) {
			err := fn(h)
			if err == nil {
				return nil
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if h.mirror {
				err = fmt.Errorf("mirror %s: %w", h.url.Host, err)
			}
			failed = append(failed, err)
			var f *failure
			if errors.As(err, &f) && f.again {
				again = true
				wait = max(wait, f.after)
			}
		}
		if len(failed) == 0 {
			err := fault.New(fault.NotFound, "no host serves %s", r.ref.Registry)
			return fault.Hint(err, "look at the capabilities in %s", r.hosts[len(r.hosts)-1].file)
		}
		if !again || round+1 >= maxRounds || time.Now().Add(wait).After(until) {
			return all(failed)
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

// trusted lists the hosts to ask; those that served wrong content only if there is no other.
func (r *Repository) trusted(fits func(*host) bool) []*host {
	var good, bad []*host
	for _, h := range r.hosts {
		h.mu.Lock()
		wrong := h.bad
		h.mu.Unlock()
		switch {
		case fits != nil && !fits(h):
		case wrong:
			bad = append(bad, h)
		default:
			good = append(good, h)
		}
	}
	if len(good) == 0 {
		return bad
	}
	return good
}

// all makes one error of those of several hosts; the kind is the last one's, which is the registry's own.
func all(list []error) error {
	last := list[len(list)-1]
	if len(list) == 1 {
		return last
	}
	var b strings.Builder
	for _, err := range list[:len(list)-1] {
		b.WriteString(err.Error() + "; ")
	}
	return fault.As(fault.Of(last), fmt.Errorf("%s%w", b.String(), last))
}

// jitter spreads d over ±50 %, lest all nodes of a cluster come back in the same moment.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }
