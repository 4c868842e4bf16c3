package proxy

import "testing"

// TestPackets plays all scenes with worknode's proxy.
func TestPackets(t *testing.T) { playAll(t, worknode) }

// TestBehaviour is about flows that live, timeouts and servers.
func TestBehaviour(t *testing.T) { behaveAll(t, worknode, behaviours) }
