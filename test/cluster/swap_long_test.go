//go:build long

package cluster

import (
	"testing"

	"worknode/test/cluster/bed"
)

func TestLongEightCombinations(t *testing.T) {
	makers := []bed.Maker{bed.Ours, bed.Upstream}
	for _, runtime := range makers {
		for _, kubelet := range makers {
			for _, proxy := range makers {
				config := bed.NodeConfig{Runtime: runtime, Kubelet: kubelet, Proxy: proxy}
				t.Run(config.String(), func(t *testing.T) { runExample(t, config) })
			}
		}
	}
}
