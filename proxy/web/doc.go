// Package web is what the proxy shows of itself over HTTP: health for load balancers and probes, metrics under kube-proxy's
// names, its configuration. It listens to the loop's hooks and decides nothing.
//
// Source: Kubernetes 1.37 pkg/proxy/healthcheck, pkg/proxy/metrics, cmd/kube-proxy/app; k8s.io/apiserver flagz and statusz.
package web
