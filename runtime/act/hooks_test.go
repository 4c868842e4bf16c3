package act

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"worknode/monitor/wire"
)

func TestHooksAreTranslated(t *testing.T) {
	seconds := 3
	spec := &specs.Spec{Annotations: map[string]string{"k": "v"}, Hooks: &specs.Hooks{
		Prestart:       []specs.Hook{{Path: "/a", Args: []string{"a", "b"}, Env: []string{"X=1"}, Timeout: &seconds}}, //nolint:staticcheck // deprecated, still honoured
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

// Poststop hooks run once, all of them though one fails, and take the bundle along.
func TestEndBundle(t *testing.T) {
	h := &Hands{Run: t.TempDir()}
	out := filepath.Join(t.TempDir(), "out")
	say := func(script string) specs.Hook {
		return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "exec >>" + out + "; " + script}}
	}
	spec := &specs.Spec{Hooks: &specs.Hooks{Poststop: []specs.Hook{say("cat"), say("echo; exit 9"), say("test -f config.json && echo last")}}}
	if _, err := h.hooks("id", spec); err != nil {
		t.Fatal(err)
	}
	err := h.EndBundle("id")
	if err == nil || !strings.Contains(err.Error(), "exit status 9") {
		t.Errorf("%v", err)
	}
	got, _ := os.ReadFile(out)
	if want := `{"ociVersion":"` + specs.Version + `","id":"id","status":"stopped","bundle":"` + h.Bundle("id") + "\"}\nlast\n"; string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := os.Stat(h.Bundle("id")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("bundle stays: %v", err)
	}
	if err := h.EndBundle("id"); err != nil {
		t.Errorf("again: %v", err)
	}
}
