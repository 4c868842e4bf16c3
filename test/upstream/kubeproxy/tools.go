//go:build tools

// Package upstream names what scripts/upstream builds from the Go module proxy, at the versions of go.mod.
package upstream

import _ "k8s.io/kubernetes/cmd/kube-proxy"
