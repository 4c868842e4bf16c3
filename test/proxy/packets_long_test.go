//go:build long

package proxy

import "testing"

// TestLongPackets plays all scenes with worknode's proxy.
func TestLongPackets(t *testing.T) { playAll(t, worknode) }

// TestLongPacketsUpstream plays all scenes with kube-proxy: what it does is right by definition, so this tests the scenes.
func TestLongPacketsUpstream(t *testing.T) { playAll(t, upstream) }
