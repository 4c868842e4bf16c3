//go:build long

package proxy

import "testing"

// TestLongPacketsUpstream plays all scenes with kube-proxy: what it does is right by definition, so this tests the scenes.
func TestLongPacketsUpstream(t *testing.T) { playAll(t, upstream) }

// TestLongBehaviourUpstream: the same for what takes time.
func TestLongBehaviourUpstream(t *testing.T) { behaveAll(t, upstream, append(behaviours, served...)) }

// TestLongEveryNftLists: with the nft of four Debian releases.
func TestLongEveryNftLists(t *testing.T) { listable(t, 5) }

// TestLongStorm is the storm at its full length.
func TestLongStorm(t *testing.T) { storm(t, 100_000, 10) }

// TestLongTraceAgreesWithTheKernel: with more of both.
func TestLongTraceAgreesWithTheKernel(t *testing.T) { traceAgrees(t, 100, 100) }
