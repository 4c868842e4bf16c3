package fault

import (
	"errors"
	"fmt"
	"io"
	"testing"
)

func TestKindSurvivesWrappingAndHints(t *testing.T) {
	err := New(NotFound, "image %s: %w", "web", io.EOF)
	err = fmt.Errorf("container c: %w", Hint(err, "import it"))
	if Of(err) != NotFound || !errors.Is(err, io.EOF) {
		t.Fatalf("kind %v, chain lost: %v", Of(err), err)
	}
	if got, want := err.Error(), "container c: image web: EOF (import it)"; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
	if As(Busy, nil) != nil || Hint(nil, "x") != nil {
		t.Fatal("nil must stay nil")
	}
}
