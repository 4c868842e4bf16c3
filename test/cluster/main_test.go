// Package cluster proves that worknode is a node of a real cluster: upstream's control plane, unchanged, drives it. The
// cluster comes from package bed.
package cluster

import (
	"os"
	"testing"

	"worknode/test/cluster/bed"
)

func TestMain(m *testing.M) { os.Exit(bed.Main(m)) }
