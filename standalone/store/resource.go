package store

import (
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Object is any stored object: the types of k8s.io/api, which can say their own protobuf.
type Object interface {
	metav1.Object
	runtime.Object
	Size() int
	MarshalToSizedBuffer([]byte) (int, error)
	Unmarshal([]byte) error
}

// Resource is one kind of object: how the API names it and how the store keeps it.
type Resource struct {
	Group, Version string
	Kind           string
	Name           string // plural, as in URLs
	Singular       string
	Short          []string // what kubectl lets users abbreviate
	Categories     []string
	Namespaced     bool
	Durable        bool // survives a restart of the supervisor
	Status         bool // has a status subresource
	Keep           Bound
	New            func() Object

	index int // place in All
}

// Bound says when objects of a kind go by themselves; the zero value: never.
type Bound struct {
	Age  time.Duration // since the last change
	Most int           // more than these: the least recently changed go
}

// GVK is the resource's group, version and kind.
func (r *Resource) GVK() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind}
}

// GR is the resource's group and plural name, as errors name it.
func (r *Resource) GR() schema.GroupResource {
	return schema.GroupResource{Group: r.Group, Resource: r.Name}
}

// APIVersion is "v1" or "group/version", as objects carry it.
func (r *Resource) APIVersion() string {
	return schema.GroupVersion{Group: r.Group, Version: r.Version}.String()
}

func (r *Resource) String() string {
	if r.Group == "" {
		return r.Name
	}
	return r.Name + "." + r.Group
}

// The kinds of a standalone node. Events and leases say what was true a moment ago: after a restart they are made anew.
var (
	Namespaces = &Resource{Version: "v1", Kind: "Namespace", Name: "namespaces", Singular: "namespace", Short: []string{"ns"},
		Durable: true, Status: true, New: func() Object { return &corev1.Namespace{} }}
	Nodes = &Resource{Version: "v1", Kind: "Node", Name: "nodes", Singular: "node", Short: []string{"no"},
		Durable: true, Status: true, New: func() Object { return &corev1.Node{} }}
	Pods = &Resource{Version: "v1", Kind: "Pod", Name: "pods", Singular: "pod", Short: []string{"po"}, Categories: []string{"all"},
		Namespaced: true, Durable: true, Status: true, New: func() Object { return &corev1.Pod{} }}
	Services = &Resource{Version: "v1", Kind: "Service", Name: "services", Singular: "service", Short: []string{"svc"}, Categories: []string{"all"},
		Namespaced: true, Durable: true, Status: true, New: func() Object { return &corev1.Service{} }}
	ConfigMaps = &Resource{Version: "v1", Kind: "ConfigMap", Name: "configmaps", Singular: "configmap", Short: []string{"cm"},
		Namespaced: true, Durable: true, New: func() Object { return &corev1.ConfigMap{} }}
	Secrets = &Resource{Version: "v1", Kind: "Secret", Name: "secrets", Singular: "secret",
		Namespaced: true, Durable: true, New: func() Object { return &corev1.Secret{} }}
	ServiceAccounts = &Resource{Version: "v1", Kind: "ServiceAccount", Name: "serviceaccounts", Singular: "serviceaccount", Short: []string{"sa"},
		Namespaced: true, Durable: true, New: func() Object { return &corev1.ServiceAccount{} }}
	Events = &Resource{Version: "v1", Kind: "Event", Name: "events", Singular: "event", Short: []string{"ev"},
		Namespaced: true, Keep: Bound{time.Hour, 2000}, New: func() Object { return &corev1.Event{} }}
	EndpointSlices = &Resource{Group: "discovery.k8s.io", Version: "v1", Kind: "EndpointSlice", Name: "endpointslices", Singular: "endpointslice",
		Namespaced: true, Durable: true, New: func() Object { return &discoveryv1.EndpointSlice{} }}
	Leases = &Resource{Group: "coordination.k8s.io", Version: "v1", Kind: "Lease", Name: "leases", Singular: "lease",
		Namespaced: true, New: func() Object { return &coordinationv1.Lease{} }}
)

// All lists the kinds, namespaces first: what others live in is restored before them.
var All = indexed(Namespaces, Nodes, ConfigMaps, Secrets, ServiceAccounts, Services, Pods, EndpointSlices, Events, Leases)

func indexed(all ...*Resource) []*Resource {
	for i, r := range all {
		r.index = i
	}
	return all
}

// Lookup finds a kind by group, version and plural name; nil if the node has no such kind.
func Lookup(group, version, name string) *Resource {
	for _, r := range All {
		if r.Name == name && r.Group == group && r.Version == version {
			return r
		}
	}
	return nil
}

// LookupKind finds a kind by apiVersion ("v1", "group/version") and kind; nil if the node has no such kind.
func LookupKind(apiVersion, kind string) *Resource {
	for _, r := range All {
		if r.Kind == kind && r.APIVersion() == apiVersion {
			return r
		}
	}
	return nil
}
