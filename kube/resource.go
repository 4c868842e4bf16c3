package kube

import (
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Resource is one kind of object as the API serves it.
type Resource struct {
	Group      schema.GroupVersion
	Name       string // plural, lower case, as in the URL
	Namespaced bool
	New        func() runtime.Object
	NewList    func() runtime.Object
}

// The kinds that a node reads or writes.
var (
	Pods           = Resource{corev1.SchemeGroupVersion, "pods", true, func() runtime.Object { return &corev1.Pod{} }, func() runtime.Object { return &corev1.PodList{} }}
	Services       = Resource{corev1.SchemeGroupVersion, "services", true, func() runtime.Object { return &corev1.Service{} }, func() runtime.Object { return &corev1.ServiceList{} }}
	Nodes          = Resource{corev1.SchemeGroupVersion, "nodes", false, func() runtime.Object { return &corev1.Node{} }, func() runtime.Object { return &corev1.NodeList{} }}
	ConfigMaps     = Resource{corev1.SchemeGroupVersion, "configmaps", true, func() runtime.Object { return &corev1.ConfigMap{} }, func() runtime.Object { return &corev1.ConfigMapList{} }}
	Secrets        = Resource{corev1.SchemeGroupVersion, "secrets", true, func() runtime.Object { return &corev1.Secret{} }, func() runtime.Object { return &corev1.SecretList{} }}
	Events         = Resource{corev1.SchemeGroupVersion, "events", true, func() runtime.Object { return &corev1.Event{} }, func() runtime.Object { return &corev1.EventList{} }}
	Namespaces     = Resource{corev1.SchemeGroupVersion, "namespaces", false, func() runtime.Object { return &corev1.Namespace{} }, func() runtime.Object { return &corev1.NamespaceList{} }}
	EndpointSlices = Resource{discoveryv1.SchemeGroupVersion, "endpointslices", true, func() runtime.Object { return &discoveryv1.EndpointSlice{} }, func() runtime.Object { return &discoveryv1.EndpointSliceList{} }}
	ServiceCIDRs   = Resource{networkingv1.SchemeGroupVersion, "servicecidrs", false, func() runtime.Object { return &networkingv1.ServiceCIDR{} }, func() runtime.Object { return &networkingv1.ServiceCIDRList{} }}
	Leases         = Resource{coordinationv1.SchemeGroupVersion, "leases", true, func() runtime.Object { return &coordinationv1.Lease{} }, func() runtime.Object { return &coordinationv1.LeaseList{} }}
)

// What a node asks the API server about others, and for itself. These have no lists.
var (
	TokenReviews         = Resource{Group: authenticationv1.SchemeGroupVersion, Name: "tokenreviews", New: func() runtime.Object { return &authenticationv1.TokenReview{} }}
	SubjectAccessReviews = Resource{Group: authorizationv1.SchemeGroupVersion, Name: "subjectaccessreviews", New: func() runtime.Object { return &authorizationv1.SubjectAccessReview{} }}
	CertificateRequests  = Resource{certificatesv1.SchemeGroupVersion, "certificatesigningrequests", false, func() runtime.Object { return &certificatesv1.CertificateSigningRequest{} }, func() runtime.Object { return &certificatesv1.CertificateSigningRequestList{} }}
)

// groups are those that the client speaks.
var groups = []struct {
	version schema.GroupVersion
	add     func(*runtime.Scheme) error
}{
	{corev1.SchemeGroupVersion, corev1.AddToScheme}, {discoveryv1.SchemeGroupVersion, discoveryv1.AddToScheme},
	{coordinationv1.SchemeGroupVersion, coordinationv1.AddToScheme}, {authenticationv1.SchemeGroupVersion, authenticationv1.AddToScheme},
	{networkingv1.SchemeGroupVersion, networkingv1.AddToScheme},
	{authorizationv1.SchemeGroupVersion, authorizationv1.AddToScheme}, {certificatesv1.SchemeGroupVersion, certificatesv1.AddToScheme},
}

// newScheme holds only the groups above: the full client-go scheme costs every process of the node a few megabytes.
func newScheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	for _, g := range groups {
		if err := g.add(s); err != nil {
			return nil, err
		}
	}
	metav1.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"})
	return s, nil
}
