package spec

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"worknode/monitor/wire"
)

func TestHooksAreTranslated(t *testing.T) {
	seconds := 3
	spec := &specs.Spec{Annotations: map[string]string{"k": "v"}, Hooks: &specs.Hooks{
		Prestart:       []specs.Hook{{Path: "/a", Args: []string{"a", "b"}, Env: []string{"X=1"}, Timeout: &seconds}}, // deprecated, still honoured
		CreateRuntime:  []specs.Hook{{Path: "/b"}},
		StartContainer: []specs.Hook{{Path: "/c"}},
		Poststop:       []specs.Hook{{Path: "/d"}},
	}}
	want := &wire.Hooks{
		State:    wire.State{Version: specs.Version, ID: "id", Bundle: "/bundle", Annotations: spec.Annotations},
		Prestart: []wire.Hook{{Path: "/a", Args: []string{"a", "b"}, Env: []string{"X=1"}, Timeout: 3 * time.Second}}, CreateRuntime: []wire.Hook{{Path: "/b"}},
		StartContainer: []wire.Hook{{Path: "/c"}},
	}
	if diff := cmp.Diff(want, Hooks("id", "/bundle", spec)); diff != "" {
		t.Error(diff)
	}
	if got := Hooks("id", "/bundle", &specs.Spec{Hooks: &specs.Hooks{}}); got != nil {
		t.Errorf("no hooks became %v", got)
	}
}
