// Package access decides who calls the kubelet's server and what they may do there. Certificates speak for themselves;
// about bearer tokens and rights it asks the API server, and remembers the answers for a while.
// Source: Kubernetes docs, kubelet authentication/authorization.
package access

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	authn "k8s.io/api/authentication/v1"
	authz "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"worknode/fault"
	"worknode/kube"
)

// User is who calls.
type User struct {
	Name, UID string
	Groups    []string
	Extra     map[string][]string
}

// Config says whom to believe. The zero value lets the bearers of client certificates in, and allows them nothing.
type Config struct {
	Client *kube.Client // for reviews; may be nil if neither is asked for
	Node   string

	Anonymous   bool // callers without credentials are system:anonymous
	Tokens      bool // the API server says whose a bearer token is
	AlwaysAllow bool // whoever is known may do everything; else the API server says

	TokenTTL          time.Duration // how long an answer about a token holds
	AllowTTL, DenyTTL time.Duration // and about rights
	create            func(context.Context, kube.Resource, runtime.Object) error
	now               func() time.Time
	tokens            *cache[User]
	rights            *cache[bool]
}

// Access answers for one server. Make it with New; it is safe for concurrent use.
type Access struct{ Config }

const askWithin = 10 * time.Second

// New returns an Access that has asked nobody yet.
func New(c Config) *Access {
	if c.create == nil {
		c.create = func(ctx context.Context, r kube.Resource, obj runtime.Object) error {
			return c.Client.Create(ctx, r, "", obj, obj)
		}
	}
	if c.now == nil {
		c.now = time.Now
	}
	c.tokens, c.rights = newCache[User](), newCache[bool]()
	return &Access{c}
}

// Who tells who sends a request. Errors: Denied if nobody known does, with what to present instead; Temporary if the API
// server could not be asked about a token.
func (a *Access) Who(r *http.Request) (User, error) {
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		// Source: Kubernetes docs, authentication, X.509: user is the common name, groups the organisations.
		subject := r.TLS.VerifiedChains[0][0].Subject
		return User{Name: subject.CommonName, Groups: append(slices.Clone(subject.Organization), "system:authenticated")}, nil
	}
	kind, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	switch {
	case strings.EqualFold(kind, "Bearer") && token != "" && a.Tokens:
		return a.token(r.Context(), token)
	case kind == "" && a.Anonymous:
		return User{Name: "system:anonymous", Groups: []string{"system:unauthenticated"}}, nil
	}
	want := "a client certificate of this node's client CA"
	if a.Tokens {
		want += " or a bearer token of the cluster"
	}
	return User{}, fault.New(fault.Denied, "Unauthorized: present %s", want)
}

var errUnknown = fault.New(fault.Denied, "Unauthorized: the API server does not know this token")

func (a *Access) token(ctx context.Context, token string) (User, error) {
	sum := sha256.Sum256([]byte(token)) // the cache need not hold secrets
	return a.tokens.get(ctx, string(sum[:]), a.now, func(ctx context.Context) (User, time.Duration, error) {
		review := &authn.TokenReview{Spec: authn.TokenReviewSpec{Token: token}}
		if err := a.create(ctx, kube.TokenReviews, review); err != nil {
			return User{}, 0, fault.New(fault.Temporary, "Unauthorized: the API server could not be asked about the token: %w", err)
		}
		if !review.Status.Authenticated {
			return User{}, a.TokenTTL, errUnknown
		}
		u := review.Status.User
		who := User{Name: u.Username, UID: u.UID, Groups: u.Groups, Extra: map[string][]string{}}
		for k, v := range u.Extra {
			who.Extra[k] = v
		}
		return who, a.TokenTTL, nil
	})
}

// May tells whether a user may do verb on this node's subresources: one of subs is enough, asked in their order.
// Errors: Denied; Temporary if the API server could not be asked.
func (a *Access) May(ctx context.Context, who User, verb string, subs ...string) error {
	if a.AlwaysAllow {
		return nil
	}
	var down error
	for _, sub := range subs {
		allowed, err := a.right(ctx, who, verb, sub)
		switch {
		case err != nil:
			down = err
		case allowed:
			return nil
		}
	}
	if down != nil {
		return fault.New(fault.Temporary, "authorization (user=%s, verb=%s, resource=nodes, subresource(s)=%v): %w", who.Name, verb, subs, down)
	}
	return fault.New(fault.Denied, "Forbidden (user=%s, verb=%s, resource=nodes, subresource(s)=%v)", who.Name, verb, subs)
}

func (a *Access) right(ctx context.Context, who User, verb, sub string) (bool, error) {
	return a.rights.get(ctx, fmt.Sprintf("%q %q", []any{who.Name, who.UID, who.Groups, who.Extra}, []string{verb, sub}), a.now,
		func(ctx context.Context) (bool, time.Duration, error) {
			spec := authz.SubjectAccessReviewSpec{
				User: who.Name, UID: who.UID, Groups: who.Groups, Extra: map[string]authz.ExtraValue{},
				ResourceAttributes: &authz.ResourceAttributes{Verb: verb, Version: "v1", Resource: "nodes", Subresource: sub, Name: a.Node},
			}
			for k, v := range who.Extra {
				spec.Extra[k] = v
			}
			review := &authz.SubjectAccessReview{Spec: spec}
			if err := a.create(ctx, kube.SubjectAccessReviews, review); err != nil {
				return false, 0, fmt.Errorf("ask the API server: %w", err)
			}
			s := review.Status
			if s.EvaluationError != "" && !s.Allowed && !s.Denied {
				return false, 0, errors.New(s.EvaluationError)
			}
			if s.Allowed && !s.Denied {
				return true, a.AllowTTL, nil
			}
			return false, a.DenyTTL, nil
		})
}
