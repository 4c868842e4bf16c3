package state

import (
	"fmt"
	"strings"
	"testing"
)

// Every pair of phase and event either leads forward or is refused; this is the whole table.
func TestPhasesOnlyMoveForward(t *testing.T) {
	want := strings.TrimSpace(`
created started  -> running
created died     -> exited
created refused  -> exited
created removed  -> gone
running started  -> no
running died     -> exited
running refused  -> no
running removed  -> gone
exited  started  -> no
exited  died     -> no
exited  refused  -> no
exited  removed  -> gone
gone    started  -> no
gone    died     -> no
gone    refused  -> no
gone    removed  -> no`)
	var got []string
	for p := Created; p <= Gone; p++ {
		for e := Started; e <= Removed; e++ {
			next, ok := p.After(e)
			line := fmt.Sprintf("%-7s %-8s -> ", p, e)
			switch {
			case !ok && next == p:
				line += "no"
			case ok && next > p:
				line += next.String()
			default:
				line += fmt.Sprintf("BACKWARDS to %s", next)
			}
			got = append(got, line)
		}
	}
	if g := strings.Join(got, "\n"); g != want {
		t.Errorf("the table of phases is now:\n%s", g)
	}
}
