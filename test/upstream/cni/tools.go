//go:build tools

// Package upstream names what scripts/upstream builds from the Go module proxy, at the versions of go.mod.
package upstream

import (
	_ "github.com/containernetworking/plugins/plugins/ipam/host-local"
	_ "github.com/containernetworking/plugins/plugins/main/bridge"
	_ "github.com/containernetworking/plugins/plugins/main/loopback"
)
