package act

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

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
