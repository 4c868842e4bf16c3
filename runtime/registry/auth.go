package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"worknode/fault"
)

const maxToken = 1 << 20 // bytes of a token server's answer

// challenge is one way to log in that a 401 offers.
type challenge struct {
	scheme string // lower case
	params map[string]string
}

// logIn takes the best of the ways that h offers and keeps the result in h. used is the Authorization that was refused:
// if another goroutine has logged in since, its result is taken.
// Errors: Denied if there is nothing to log in with, or it is refused.
func (r *Repository) logIn(ctx context.Context, h *host, offers []challenge, used string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.auth != used {
		return nil
	}
	for _, c := range offers {
		if c.scheme == "bearer" && c.params["realm"] != "" {
			token, err := r.token(ctx, h, c)
			if err == nil {
				h.auth = "Bearer " + token
			}
			return err
		}
	}
	for _, c := range offers {
		if c.scheme != "basic" {
			continue
		}
		if h.login.Username == "" && h.login.Password == "" {
			return r.noLogin(h)
		}
		auth := basic(h.login)
		if auth == used {
			return r.refused(h)
		}
		h.auth = auth
		return nil
	}
	err := fault.New(fault.Denied, "%s asks for a log-in of a kind unknown here", h.url.Host)
	if len(offers) == 0 {
		err = fault.New(fault.Denied, "%s answers 401 Unauthorized and does not say how to log in", h.url.Host)
	}
	return err
}

func basic(c Credentials) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+string(c.Password)))
}

func (r *Repository) noLogin(h *host) error {
	err := fault.New(fault.Denied, "%s asks for a log-in, and there are no credentials for it", h.url.Host)
	return fault.Hint(err, "name an imagePullSecret, or a credential provider that covers %s; the repository may also not exist", r.ref.Registry)
}

func (r *Repository) refused(h *host) error {
	if h.login.empty() {
		return r.noLogin(h)
	}
	who := "the credentials given"
	if h.login.Username != "" {
		who = fmt.Sprintf("the credentials of %q", h.login.Username)
	}
	err := fault.New(fault.Denied, "%s refuses %s for %s", h.url.Host, who, r.ref.Repository)
	return fault.Hint(err, "check the imagePullSecret or credential provider for %s; the repository may also not exist", r.ref.Registry)
}

func (c Credentials) empty() bool {
	return c.Username == "" && c.Password == "" && c.IdentityToken == "" && c.RegistryToken == ""
}

// identity is the refresh token, which some clients hand over as the password of a user without a name.
// Source: docker-credential-helpers, "<token>".
func (c Credentials) identity() Secret {
	if c.IdentityToken == "" && c.Username == "<token>" {
		return c.Password
	}
	return c.IdentityToken
}

// token gets a bearer token for pulling. Source: Docker "Token Authentication Specification" (GET) and
// "OAuth2 token authentication" (POST, for refresh tokens).
func (r *Repository) token(ctx context.Context, h *host, c challenge) (string, error) {
	realm, err := url.Parse(c.params["realm"])
	if err != nil || realm.Host == "" || realm.Scheme != "https" && realm.Scheme != "http" {
		return "", fault.New(fault.Invalid, "%s names a token server that is no web address: %q", h.url.Host, c.params["realm"])
	}
	if realm.Scheme == "http" && !h.login.empty() && h.scheme != "http" && !loopback(realm.Host) {
		return "", fault.New(fault.Denied, "%s sends us with our credentials to http://%s, where anybody could read them", h.url.Host, realm.Host)
	}
	ctx, stop := context.WithTimeout(ctx, min(answerLimit, r.opt.Stall))
	defer stop()
	request, err := r.tokenRequest(ctx, h, realm, c)
	if err != nil {
		return "", err
	}
	reply, err := h.client.Do(request)
	if err != nil {
		return "", r.explain(h, "log in at "+realm.Host, err)
	}
	defer reply.Body.Close()
	data, err := io.ReadAll(io.LimitReader(reply.Body, maxToken))
	switch {
	case reply.StatusCode == http.StatusUnauthorized, reply.StatusCode == http.StatusForbidden, reply.StatusCode == http.StatusBadRequest:
		return "", r.refused(h)
	case reply.StatusCode != http.StatusOK:
		return "", r.status(h, "log in at "+realm.Host, reply, data)
	case err != nil:
		return "", r.explain(h, "log in at "+realm.Host, err)
	}
	token, err := parseToken(data)
	if err != nil {
		return "", fault.New(fault.Temporary, "token server %s: %w", realm.Host, err)
	}
	return token, nil
}

func (r *Repository) tokenRequest(ctx context.Context, h *host, realm *url.URL, c challenge) (*http.Request, error) {
	scope := c.params["scope"]
	if scope == "" {
		scope = "repository:" + r.ref.Repository + ":pull"
	}
	q := url.Values{}
	if s := c.params["service"]; s != "" {
		q.Set("service", s)
	}
	var request *http.Request
	var err error
	if refresh := h.login.identity(); refresh != "" {
		q.Set("grant_type", "refresh_token")
		q.Set("refresh_token", string(refresh))
		q.Set("client_id", "worknode")
		q.Set("scope", scope)
		request, err = http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(q.Encode()))
		if err == nil {
			request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
	} else {
		for k, v := range realm.Query() {
			q[k] = append(v, q[k]...)
		}
		q["scope"] = strings.Fields(scope)
		at := *realm
		at.RawQuery = q.Encode()
		request, err = http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
		if err == nil && (h.login.Username != "" || h.login.Password != "") {
			request.Header.Set("Authorization", basic(h.login))
		}
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "token server %s: %w", realm.Host, err)
	}
	request.Header.Set("User-Agent", r.opt.Agent)
	return request, nil
}

func parseToken(data []byte) (string, error) {
	var t struct {
		Token  string `json:"token"`
		Access string `json:"access_token"`
	}
	if err := json.Unmarshal(data, &t); err != nil {
		return "", fmt.Errorf("its answer is not the JSON expected: %w", err)
	}
	if t.Token == "" {
		t.Token = t.Access
	}
	if t.Token == "" || strings.ContainsFunc(t.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("its answer has no usable token")
	}
	return t.Token, nil
}

// parseChallenges reads WWW-Authenticate headers. What cannot be read ends the list; nothing is an error.
// Source: RFC 9110 section 11.6.1: challenges and their parameters are both parted by commas.
func parseChallenges(headers []string) []challenge {
	var out []challenge
	for _, s := range headers {
		for {
			s = strings.TrimLeft(s, " \t,")
			word, rest := cutToken(s)
			if word == "" {
				break
			}
			rest = strings.TrimLeft(rest, " \t")
			if strings.HasPrefix(rest, "=") && len(out) > 0 {
				value, after, ok := cutValue(strings.TrimLeft(rest[1:], " \t"))
				if !ok {
					break
				}
				key := strings.ToLower(word)
				if _, twice := out[len(out)-1].params[key]; !twice {
					out[len(out)-1].params[key] = value
				}
				s = after
				continue
			}
			out = append(out, challenge{strings.ToLower(word), map[string]string{}})
			s = rest
		}
	}
	return out
}

// cutToken takes an RFC 9110 token off the front.
func cutToken(s string) (token, rest string) {
	i := strings.IndexFunc(s, func(r rune) bool {
		return !('0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
	})
	if i < 0 {
		i = len(s)
	}
	return s[:i], s[i:]
}

// cutValue takes a token or a quoted string off the front.
func cutValue(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		value, rest = cutToken(s)
		return value, rest, value != ""
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			if i++; i == len(s) {
				return "", "", false
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}
