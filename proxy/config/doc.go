// Package config reads KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1) and the command line of kube-proxy,
// fills in what is not said, and checks what is. It knows what each setting means, not what is done about it.
//
// The types are ours, field for field those of k8s.io/kube-proxy (a test compares them): importing that module brings
// the whole of component-base along, whose registries cost every process of the node a quarter of a megabyte and a
// millisecond at each start.
//
// Source: k8s.io/kube-proxy v0.37 config/v1alpha1; Kubernetes 1.37 pkg/proxy/apis/config for defaults and validation.
package config
