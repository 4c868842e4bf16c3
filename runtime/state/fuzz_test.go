package state

import (
	"encoding/json"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// FuzzRecord reads what may lie in a record's file: no panic, and what was read is written and read again.
func FuzzRecord(f *testing.F) {
	for _, v := range []any{
		&Sandbox{ID: "a", Config: &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "p"}}},
		&Container{ID: "b", Config: &cri.ContainerConfig{Envs: []*cri.KeyValue{{Key: "k"}}}},
	} {
		data, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("null"))
	f.Add([]byte(`{"Config":null}`))
	f.Add([]byte(`{"Config":[],"State":7}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		again := func(v, into any) {
			if json.Unmarshal(data, v) != nil {
				return
			}
			out, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(out, into); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
		again(&Sandbox{}, &Sandbox{})
		again(&Container{}, &Container{})
	})
}
