package access_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	authn "k8s.io/api/authentication/v1"
	authz "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"worknode/fault"
	"worknode/kube"
	"worknode/kubelet/api/access"
)

// cluster is an API server that knows the token "good" of user ann and lets her read nodes/proxy and create nodes/pods.
type cluster struct {
	reviews atomic.Int64
	down    atomic.Bool
	now     time.Time
}

func (c *cluster) create(_ context.Context, _ kube.Resource, obj runtime.Object) error {
	c.reviews.Add(1)
	if c.down.Load() {
		return errors.New("connection refused")
	}
	switch review := obj.(type) {
	case *authn.TokenReview:
		if review.Spec.Token == "good" {
			review.Status = authn.TokenReviewStatus{Authenticated: true, User: authn.UserInfo{Username: "ann", Groups: []string{"devs"}}}
		}
	case *authz.SubjectAccessReview:
		a := review.Spec.ResourceAttributes
		allowed := review.Spec.User == "ann" && a.Resource == "nodes" && a.Name == "n1" && (a.Verb == "get" && a.Subresource == "proxy" || a.Verb == "create" && a.Subresource == "pods")
		review.Status.Allowed = allowed
	}
	return nil
}

func open(c *cluster, config access.Config) *access.Access {
	config.Node, config.TokenTTL, config.AllowTTL, config.DenyTTL = "n1", 2*time.Minute, 5*time.Minute, 30*time.Second
	return access.New(config.With(c.create, func() time.Time { return c.now }))
}

func bearer(token string) *http.Request {
	r, _ := http.NewRequest("GET", "/", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	return r
}

func TestWhoCalls(t *testing.T) {
	cert := &http.Request{Header: http.Header{}, TLS: &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{Subject: pkix.Name{CommonName: "ann", Organization: []string{"devs"}}}}}}}
	unverified := &http.Request{Header: http.Header{}, TLS: &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{}}}}
	basic := bearer("x")
	basic.Header.Set("Authorization", "Basic YTpi")
	for _, c := range []struct {
		name   string
		config access.Config
		r      *http.Request
		want   string // name and groups, or what is said
	}{
		{"certificate", access.Config{}, cert, "ann [devs system:authenticated]"},
		{"certificate that nobody vouches for", access.Config{}, unverified, "Unauthorized: present a client certificate"},
		{"token", access.Config{Tokens: true}, bearer("good"), "ann [devs]"},
		{"unknown token", access.Config{Tokens: true}, bearer("bad"), "does not know this token"},
		{"unknown token where the anonymous may call", access.Config{Tokens: true, Anonymous: true}, bearer("bad"), "does not know this token"},
		{"token where none count", access.Config{}, bearer("good"), "Unauthorized: present a client certificate"},
		{"empty token", access.Config{Tokens: true}, bearer(""), "or a bearer token"},
		{"password", access.Config{Tokens: true, Anonymous: true}, basic, "Unauthorized"},
		{"nothing", access.Config{Tokens: true}, &http.Request{Header: http.Header{}}, "Unauthorized"},
		{"nothing, which is enough", access.Config{Anonymous: true}, &http.Request{Header: http.Header{}}, "system:anonymous [system:unauthenticated]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			who, err := open(&cluster{}, c.config).Who(c.r)
			got := fmt.Sprint(who.Name, " ", who.Groups)
			if err != nil {
				got = err.Error()
			}
			if !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestOneSubresourceIsEnough(t *testing.T) {
	a := open(&cluster{}, access.Config{})
	ann := access.User{Name: "ann"}
	for _, c := range []struct {
		who  access.User
		verb string
		subs []string
		ok   bool
	}{
		{ann, "get", []string{"pods", "proxy"}, true},
		{ann, "get", []string{"stats"}, false},
		{ann, "create", []string{"proxy"}, false}, // reading nodes/proxy must not run commands
		{access.User{Name: "bob"}, "get", []string{"proxy"}, false},
	} {
		err := a.May(t.Context(), c.who, c.verb, c.subs...)
		if (err == nil) != c.ok || err != nil && !fault.Is(err, fault.Denied) {
			t.Errorf("%s %s %v: %v", c.who.Name, c.verb, c.subs, err)
		}
	}
}

func TestAnswersHoldForTheirTime(t *testing.T) {
	c := &cluster{now: time.Unix(0, 0)}
	a := open(c, access.Config{Tokens: true})
	asked := func(want int64, what string, ask func()) {
		t.Helper()
		before := c.reviews.Load()
		ask()
		if got := c.reviews.Load() - before; got != want {
			t.Errorf("%s: %d reviews, want %d", what, got, want)
		}
	}
	token := func(s string) func() { return func() { _, _ = a.Who(bearer(s)) } }
	may := func(who string) func() {
		return func() { _ = a.May(context.Background(), access.User{Name: who}, "get", "proxy") }
	}
	asked(1, "first", token("good"))
	asked(0, "again", token("good"))
	asked(1, "another", token("bad"))
	asked(0, "a refusal too", token("bad"))
	asked(1, "rights", may("ann"))
	asked(1, "no rights", may("bob"))
	c.now = c.now.Add(31 * time.Second)
	asked(0, "rights hold five minutes", may("ann"))
	asked(1, "refusals half of one", may("bob"))
	c.now = c.now.Add(2 * time.Minute)
	asked(1, "tokens two", token("good"))
	c.down.Store(true)
	asked(0, "what is known needs no API server", may("ann"))
	if err := a.May(t.Context(), access.User{Name: "eve"}, "get", "proxy"); !fault.Is(err, fault.Temporary) {
		t.Errorf("an unreachable API server: %v", err)
	}
	c.down.Store(false)
	asked(1, "and its silence is not remembered", may("eve"))
}

func TestFloodsAreBounded(t *testing.T) {
	c := &cluster{now: time.Unix(0, 0)}
	a := open(c, access.Config{Tokens: true})
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() { _, _ = a.Who(bearer("same")) })
	}
	all.Wait()
	for i := range 10000 {
		_, _ = a.Who(bearer(fmt.Sprint("invented", i)))
	}
	if n := a.Remembered(); n > 4096 {
		t.Errorf("%d tokens are remembered", n)
	}
}
