package object

import (
	"context"
	"encoding/json"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"worknode/fault"
	"worknode/kube"
)

// KindToken is what changed reports when a pod's service account token is due for renewal; name is the pod's.
const KindToken = "Token"

// A token is renewed after this part of its life, or this long, whichever is first.
// Source: Kubernetes docs, service account token volume projection.
const (
	tokenMostAge = 24 * time.Hour
	tokenPart    = 0.8
)

type tokenKey struct {
	uid            types.UID
	namespace, pod string
	audience       string
	seconds        int64
}

type token struct {
	text  string
	until time.Time // renew then
	timer *time.Timer
}

// Token returns a token of the pod's service account, bound to the pod: the one given before while it is young enough,
// or a new one. When it comes of age, changed is called, and the next Token is a new one.
// Errors: Unsupported if the API server gives no tokens; NotFound if there is no such account; Temporary otherwise.
func (c *Cache) Token(ctx context.Context, pod *v1.Pod, want *v1.ServiceAccountTokenProjection) (string, error) {
	key := tokenKey{uid: pod.UID, namespace: pod.Namespace, pod: pod.Name, audience: want.Audience, seconds: 3600}
	if want.ExpirationSeconds != nil {
		key.seconds = *want.ExpirationSeconds
	}
	c.mu.Lock()
	have, ok := c.tokens[key]
	c.mu.Unlock()
	if ok && time.Now().Before(have.until) {
		return have.text, nil
	}
	status, err := c.requestToken(ctx, pod, key)
	if err != nil {
		return "", err
	}
	life := time.Duration(float64(time.Until(status.ExpirationTimestamp.Time)) * tokenPart)
	life = max(min(life, tokenMostAge), time.Second)
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, used := c.users[pod.UID]; !used {
		return status.Token, nil // nobody to renew it for
	}
	if old, ok := c.tokens[key]; ok {
		old.timer.Stop()
	}
	c.tokens[key] = token{status.Token, time.Now().Add(life), time.AfterFunc(life, func() { c.changed(key.namespace, KindToken, key.pod) })}
	return status.Token, nil
}

// dropTokens needs mu.
func (c *Cache) dropTokens(uid types.UID) {
	for key, t := range c.tokens {
		if key.uid == uid {
			t.timer.Stop()
			delete(c.tokens, key)
		}
	}
}

// requestToken speaks JSON: the kind is not among those of package kube, and there is one request a pod and day.
func (c *Cache) requestToken(ctx context.Context, pod *v1.Pod, key tokenKey) (authv1.TokenRequestStatus, error) {
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	req := authv1.TokenRequest{Spec: authv1.TokenRequestSpec{
		ExpirationSeconds: &key.seconds,
		BoundObjectRef:    &authv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	req.APIVersion, req.Kind = "authentication.k8s.io/v1", "TokenRequest"
	if key.audience != "" {
		req.Spec.Audiences = []string{key.audience}
	}
	body, err := json.Marshal(req)
	if err != nil {
		return authv1.TokenRequestStatus{}, err
	}
	return c.postToken(ctx, pod.Namespace, account, body)
}

const (
	refusedFirst = 10 * time.Millisecond
	refusedMost  = time.Second
)

// postToken asks again, soon, when it is refused: the node authorizer learns that the pod is this node's at the same time
// as the node does, and may be the later of the two.
func (c *Cache) postToken(ctx context.Context, ns, account string, body []byte) (authv1.TokenRequestStatus, error) {
	for wait := refusedFirst; ; wait *= 2 {
		status, err := c.tryToken(ctx, ns, account, body)
		if !apierrors.IsForbidden(err) || wait > refusedMost {
			return status, tokenFault(err, ns, account)
		}
		select {
		case <-ctx.Done():
			return status, tokenFault(err, ns, account)
		case <-time.After(wait):
		}
	}
}

func (c *Cache) tryToken(ctx context.Context, ns, account string, body []byte) (authv1.TokenRequestStatus, error) {
	raw, err := c.client.REST(kube.Pods).Post().Namespace(ns).Resource("serviceaccounts").Name(account).
		SubResource("token").SetHeader("Content-Type", "application/json").SetHeader("Accept", "application/json").
		Body(body).Do(ctx).Raw()
	var out authv1.TokenRequest
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	var said metav1.Status // the client reads only protobuf into its errors
	if err != nil && json.Unmarshal(raw, &said) == nil && said.Reason != "" {
		err = &apierrors.StatusError{ErrStatus: said}
	}
	return out.Status, err
}

func tokenFault(err error, ns, account string) error {
	kind := fault.Temporary
	switch {
	case err == nil:
		return nil
	case apierrors.IsMethodNotSupported(err):
		kind = fault.Unsupported
	case apierrors.IsNotFound(err):
		kind = fault.NotFound
	}
	return fault.Hint(fault.New(kind, "token of service account %s/%s: %w", ns, account, err),
		"a pod that needs none can set automountServiceAccountToken: false")
}
