// Package kube is the node's client for the Kubernetes API, the same for a real cluster and for the local API of a
// standalone node: a few kinds, protobuf on the wire, one connection per process. It keeps no cache: Follow delivers
// changes and whoever cares keeps what it needs.
package kube

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Client talks to one API server. It is safe for concurrent use.
type Client struct {
	groups map[schema.GroupVersion]*rest.RESTClient
	params runtime.ParameterCodec
	conns  *connections

	cfg *rest.Config
	id  Identity
}

// Open reads a kubeconfig file and prepares a client; nothing is dialled yet. agent names the caller in the server's logs.
func Open(kubeconfig, agent string) (*Client, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	cfg.UserAgent = agent
	return For(cfg)
}

// For returns a client for a configuration that is already loaded.
func For(cfg *rest.Config) (*Client, error) { return ForIdentity(cfg, nil) }

// ForIdentity is For with a certificate that may change while the client runs; Reconnect brings a change into force.
// A nil id leaves the certificate to cfg; one in files is read again when they change.
func ForIdentity(cfg *rest.Config, id Identity) (*Client, error) {
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	cfg = rest.CopyConfig(cfg)
	// Rate limits belong to the callers (heartbeats must never wait behind events), so the transport has none.
	cfg.QPS = -1
	cfg.ContentType = runtime.ContentTypeProtobuf
	cfg.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	cfg.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	web, conns, err := web(cfg, id)
	if err != nil {
		return nil, fmt.Errorf("API client for %s: %w", cfg.Host, err)
	}
	c := &Client{groups: map[schema.GroupVersion]*rest.RESTClient{}, params: runtime.NewParameterCodec(scheme), conns: conns, cfg: cfg, id: id}
	for _, g := range groups {
		gv, one := g.version, rest.CopyConfig(cfg)
		one.GroupVersion = &gv
		one.APIPath = "/apis"
		if gv.Group == "" {
			one.APIPath = "/api"
		}
		if c.groups[gv], err = rest.RESTClientForConfigAndClient(one, web); err != nil {
			return nil, fmt.Errorf("API client for %s: %w", gv, err)
		}
	}
	return c, nil
}

// Reconnect ends all connections; requests in flight fail, watches resume. New ones present the identity of that time.
func (c *Client) Reconnect() { c.conns.closeAll() }

// Apart returns a client with connections of its own: heartbeats must not wait behind what others send.
func (c *Client) Apart() (*Client, error) { return ForIdentity(c.cfg, c.id) }

// REST is the client of a resource's group, for calls that the methods below do not cover.
func (c *Client) REST(r Resource) rest.Interface { return c.groups[r.Group] }

// Get reads one object into out. Errors are those of k8s.io/apimachinery/pkg/api/errors, as for all calls here.
func (c *Client) Get(ctx context.Context, r Resource, ns, name string, out runtime.Object) error {
	return c.groups[r.Group].Get().NamespaceIfScoped(ns, r.Namespaced).Resource(r.Name).Name(name).Do(ctx).Into(out)
}

// List reads all objects that where selects into out.
func (c *Client) List(ctx context.Context, r Resource, where Where, out runtime.Object) error {
	return c.listing(r, where).Do(ctx).Into(out)
}

// Create stores a new object; out receives what the server made of it and may be obj itself.
func (c *Client) Create(ctx context.Context, r Resource, ns string, obj, out runtime.Object) error {
	return c.groups[r.Group].Post().NamespaceIfScoped(ns, r.Namespaced).Resource(r.Name).Body(obj).Do(ctx).Into(out)
}

// Update replaces an object (or, with a subresource such as "status", that part of it).
func (c *Client) Update(ctx context.Context, r Resource, ns, name string, obj, out runtime.Object, sub ...string) error {
	return c.groups[r.Group].Put().NamespaceIfScoped(ns, r.Namespaced).Resource(r.Name).Name(name).SubResource(sub...).Body(obj).Do(ctx).Into(out)
}

// Patch changes an object or a subresource of it; out may be nil.
func (c *Client) Patch(ctx context.Context, r Resource, ns, name string, kind types.PatchType, patch []byte, out runtime.Object, sub ...string) error {
	res := c.groups[r.Group].Patch(kind).NamespaceIfScoped(ns, r.Namespaced).Resource(r.Name).Name(name).SubResource(sub...).Body(patch).Do(ctx)
	if out == nil {
		return res.Error()
	}
	return res.Into(out)
}

// Delete removes an object; options may be nil.
func (c *Client) Delete(ctx context.Context, r Resource, ns, name string, options *metav1.DeleteOptions) error {
	if options == nil {
		options = &metav1.DeleteOptions{}
	}
	return c.groups[r.Group].Delete().NamespaceIfScoped(ns, r.Namespaced).Resource(r.Name).Name(name).Body(options).Do(ctx).Error()
}
