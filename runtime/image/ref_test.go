package image

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/distribution/reference"

	"worknode/fault"
)

var names = []string{
	"web", "web:1", "team/web", "a/b/c:1", "registry.example/x", "registry.example:5000/x:y", "localhost/x", "localhost:1/x",
	"Upper/x", "x/Upper", "index.docker.io/x", "docker.io/x", "docker.io/library/x", "docker.io/a/b", "a.b", "a.b/c", "a_b", "a__b", "a___b",
	"a--b", "a..b", "-a", "a-", "a:", ":a", "a:.b", "a:-b", "a:_b", "a@", "a@sha256:", "", "/", "a/", "/a", "a//b", "[::1]/x", "[::1]:80/x:1",
	"[]/x", "[::1/x", "a.b:port/x", "a:b:c", "-a.b/c", "a.-b/c", "é", "a b", "a\nb", "A.B/c", "1.2.3.4/x", "a:" + strings.Repeat("t", 128),
	"a:" + strings.Repeat("t", 129), strings.Repeat("a", 64), strings.Repeat("z", 64), strings.Repeat("a/", 127) + "a", strings.Repeat("a/", 128) + "a",
	"web@sha256:" + strings.Repeat("a", 64), "web:1@sha256:" + strings.Repeat("a", 64), "web@sha256:" + strings.Repeat("A", 64),
	"web@sha256:" + strings.Repeat("a", 63), "web@md5:" + strings.Repeat("a", 32), "web@sha256:" + strings.Repeat("a", 64) + ":x", "a@b@c",
	strings.Repeat("a", 64) + ":1", "docker.io/" + strings.Repeat("a", 64), strings.Repeat("a", 245) + ".b/c", "sha256:" + strings.Repeat("a", 64),
}

func TestNamesAreReadAsTheFieldReadsThem(t *testing.T) {
	check := func(s string) {
		t.Helper()
		want := ""
		if n, err := reference.ParseDockerRef(s); err == nil {
			want = n.String()
		}
		got, err := normal(s)
		if got != want {
			t.Errorf("%q: got %q (%v), want %q", s, got, err, want)
		}
		if err != nil && !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: kind of %v", s, err)
		}
	}
	for _, s := range names {
		check(s)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 100_000 {
		b := []byte(names[r.IntN(len(names))])
		for range r.IntN(4) {
			const alphabet = "aZ0.:/_-@[] é"
			i := r.IntN(len(b) + 1)
			switch {
			case r.IntN(2) == 0 || i == len(b):
				b = append(b[:i:i], append([]byte{alphabet[r.IntN(len(alphabet))]}, b[i:]...)...)
			default:
				b = append(b[:i:i], b[i+1:]...)
			}
		}
		check(string(b))
	}
}
