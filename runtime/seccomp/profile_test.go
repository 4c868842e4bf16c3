package seccomp

import (
	"bytes"
	"strings"
	"testing"

	"worknode/fault"
)

func TestProfileFiles(t *testing.T) {
	var c Cache
	for name, row := range map[string]struct {
		text string
		kind fault.Kind
	}{
		"no json":    {"{", fault.Invalid},
		"notify":     {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_NOTIFY"}]}`, fault.Unsupported},
		"very large": {strings.Repeat(" ", maxProfile+1), fault.Invalid},
	} {
		if _, err := c.Load([]byte(row.text), nil); fault.Of(err) != row.kind {
			t.Errorf("%s: %v, want kind %s", name, err, row.kind)
		}
	}
}

// TestKept: one profile is compiled once for the same capabilities, and anew for others.
func TestKept(t *testing.T) {
	var c Cache
	first, err := c.Default([]string{"CAP_CHOWN"})
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.Default([]string{"CAP_CHOWN"})
	if err != nil || &again.Filter[0] != &first.Filter[0] {
		t.Errorf("compiled again: %v", err)
	}
	admin, err := c.Default([]string{"CAP_SYS_ADMIN"})
	if err != nil || bytes.Equal(admin.Filter, first.Filter) {
		t.Errorf("capabilities make no difference: %v", err)
	}
}
