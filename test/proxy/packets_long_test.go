//go:build long

package proxy

import "testing"

// TestLongPackets plays all scenes with worknode's proxy.
func TestLongPackets(t *testing.T) { playAll(t, worknode) }

// TestLongPacketsUpstream plays all scenes with kube-proxy: what it does is right by definition, so this tests the scenes.
func TestLongPacketsUpstream(t *testing.T) { playAll(t, upstream) }

// TestLongBehaviour and TestLongBehaviourUpstream: the same for what takes time.
func TestLongBehaviour(t *testing.T) { behaveAll(t, worknode) }

func TestLongBehaviourUpstream(t *testing.T) { behaveAll(t, upstream) }

// TestLongEveryNftLists: with the nft of four Debian releases.
func TestLongEveryNftLists(t *testing.T) { listable(t, worknode, "base", 4) }
