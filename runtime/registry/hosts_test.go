package registry

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestHostsFile(t *testing.T) {
	list, err := parseHosts([]byte(`
server = "https://registry-1.docker.io"
ca = "root.pem"
skip_verify = false
unknown_to_us = 1

[host."https://z.example"]
  capabilities = ["pull", "resolve", "push"]
  ca = ["/etc/ssl/a.pem", "b.pem"]
  client = [["c.cert", "c.key"], ["both.pem", ""]]
  skip_verify = true
  dial_timeout = "3s"
  [host."https://z.example".header]
    x-one = "1"
    x-two = ["2", "3"]

[host."http://a.example:5000/base"]
  capabilities = ["pull"]
  client = "both.pem"

[host."a.example/api/v2/proxy/"]
  override_path = true

[host."https://b.example/root"]
`), "/d/docker.io", "docker.io")
	if err != nil {
		t.Fatal(err)
	}
	type row struct {
		URL                              string
		Mirror, Pull, Resolve, Skip, May bool
		CA                               []string
		Pairs                            [][2]string
		Header                           http.Header
		Dial                             time.Duration
	}
	var got []row
	for _, e := range list {
		if e.file != "/d/docker.io/hosts.toml" {
			t.Errorf("file %s", e.file)
		}
		got = append(got, row{e.url.String(), e.mirror, e.pull, e.resolve, e.skipVerify, e.mayBePlain, e.ca, e.pairs, e.header, e.dial})
	}
	none := http.Header{}
	want := []row{
		{"https://z.example/v2", true, true, true, true, false, []string{"/etc/ssl/a.pem", "/d/docker.io/b.pem"},
			[][2]string{{"/d/docker.io/c.cert", "/d/docker.io/c.key"}, {"/d/docker.io/both.pem", "/d/docker.io/both.pem"}},
			http.Header{"X-One": {"1"}, "X-Two": {"2", "3"}}, 3 * time.Second},
		{"http://a.example:5000/base/v2", true, true, false, false, false, nil, [][2]string{{"/d/docker.io/both.pem", "/d/docker.io/both.pem"}}, none, 0},
		{"https://a.example/api/v2/proxy", true, true, true, false, false, nil, nil, none, 0},
		{"https://b.example/root/v2", true, true, true, false, false, nil, nil, none, 0},
		{"https://registry-1.docker.io/v2", false, true, true, false, false, []string{"/d/docker.io/root.pem"}, nil, none, 0},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestHostsFileAtFaultIsNamed(t *testing.T) {
	for text, want := range map[string]string{
		"server = ":                               "line 1",
		"server = \"ftp://x\"":                    `server "ftp://x"`,
		"server = \"https://u:p@x\"":              "not of the form",
		"[host.\"https://x y\"]":                  `host "https://x y"`,
		"[host.\"https://x\"]\nca = 5":            "ca: 5",
		"[host.\"https://x\"]\nca = [5]":          "ca: 5",
		"[host.\"https://x\"]\nclient = [[1]]":    "client: 1",
		"client = [[\"a\",\"b\",\"c\"]]":          "a certificate and a key",
		"capabilities = [\"fetch\"]":              `"fetch" is none of`,
		"dial_timeout = \"soon\"":                 `dial_timeout "soon"`,
		"[header]\nx = 1":                         `header "x"`,
		"host = 3":                                "host",
		"[host.\"\"]":                             "not of the form",
		"skip_verify = \"yes\"":                   "SkipVerify",
		strings.Repeat("[host.\"x\"]\n", 2):       "line 2",
		"server = \"https://x/?a=b\"":             "not of the form",
		"[host]\n[host.\"https://x\".header]\nx=": "line 3",
	} {
		if _, err := parseHosts([]byte(text), "/d", "x"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

func TestWhichFolderConfiguresARegistry(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	first := func(registry string) string {
		t.Helper()
		list, err := endpoints([]string{one, two}, registry)
		if err != nil {
			t.Fatal(err)
		}
		return list[0].url.String()
	}
	for registry, want := range map[string]string{
		"docker.io": "https://registry-1.docker.io/v2", "x.example:5000": "https://x.example:5000/v2", "localhost:5000": "https://localhost:5000/v2",
	} {
		if got := first(registry); got != want {
			t.Errorf("%s: %s", registry, got)
		}
	}
	write(two+"/_default/hosts.toml", `[host."https://everything"]`)
	if got := first("x.example:5000"); got != "https://everything/v2" {
		t.Error(got)
	}
	write(two+"/x.example:5000/hosts.toml", `[host."https://colon"]`)
	if got := first("x.example:5000"); got != "https://colon/v2" {
		t.Error(got)
	}
	write(two+"/x.example_5000_/hosts.toml", `[host."https://underscore"]`)
	if got := first("x.example:5000"); got != "https://underscore/v2" {
		t.Error(got)
	}
	write(one+"/x.example:5000/own.crt", "")
	write(one+"/x.example:5000/me.cert", "")
	list, err := endpoints([]string{one, two}, "x.example:5000")
	if err != nil || len(list) != 1 || len(list[0].ca) != 1 || list[0].pairs[0][1] != one+"/x.example:5000/me.key" {
		t.Errorf("Docker's layout: %+v, %v", list, err)
	}
	write(one+"/y/hosts.toml", "server = ")
	if _, err := endpoints([]string{one}, "y"); err == nil || !strings.Contains(err.Error(), one+"/y/hosts.toml: line 1") {
		t.Errorf("got %v", err)
	}
}

func TestChallenges(t *testing.T) {
	tests := []struct {
		in   []string
		want []challenge
	}{
		{[]string{`Bearer realm="https://a/t?x=1",service="s s",scope="repository:a/b:pull,push"`},
			[]challenge{{"bearer", map[string]string{"realm": "https://a/t?x=1", "service": "s s", "scope": "repository:a/b:pull,push"}}}},
		{[]string{`Basic realm=plain, Bearer REALM = "q\"uote" , service=x`, `Negotiate`},
			[]challenge{{"basic", map[string]string{"realm": "plain"}}, {"bearer", map[string]string{"realm": `q"uote`, "service": "x"}}, {"negotiate", map[string]string{}}}},
		{[]string{``, `,,`, `=x`, `"`, `Bearer realm="open`}, []challenge{{"bearer", map[string]string{}}}},
		{[]string{`Bearer realm="a",realm="b"`}, []challenge{{"bearer", map[string]string{"realm": "a"}}}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, parseChallenges(tt.in), cmp.AllowUnexported(challenge{})); diff != "" {
			t.Errorf("%q: %s", tt.in, diff)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-1": 0, "soon": 0, "99999999999": 24 * time.Hour, "9999999": 24 * time.Hour,
		"Fri, 02 Jan 2026 03:05:05 GMT": time.Minute, "Fri, 02 Jan 2025 03:05:05 GMT": 0, "Fri, 01 Jan 2044 03:05:05 GMT": 24 * time.Hour,
	} {
		if got := retryAfter(in, now); got != want {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
}

func FuzzHostsFile(f *testing.F) {
	for _, s := range []string{"", "server = \"https://x\"", "[host.\"https://x\"]\nca=[\"a\"]\nclient=[[\"a\",\"b\"]]\n[host.\"https://x\".header]\nh=[\"v\"]", "host.\"x\".ca = \"y\"", "[[host]]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parseHosts(data, "/d", "x.example")
		if err != nil {
			return
		}
		if len(list) == 0 || list[len(list)-1].mirror {
			t.Fatal("the registry itself is not the last")
		}
		for _, e := range list {
			if e.url.Host == "" || e.url.Scheme != "https" && e.url.Scheme != "http" {
				t.Fatalf("accepted %s", e.url.String())
			}
		}
	})
}

func FuzzChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://a/t",service="s",scope="a,b"`)
	f.Add(`Basic realm=x, Bearer a="\`)
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range parseChallenges([]string{s}) {
			if c.scheme == "" || c.params == nil {
				t.Fatalf("%q: %+v", s, c)
			}
		}
	})
}

func FuzzToken(f *testing.F) {
	f.Add([]byte(`{"token":"x","expires_in":60}`))
	f.Add([]byte(`{"access_token":"a\nb"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if token, err := parseToken(data); err == nil && strings.ContainsAny(token, "\r\n ") {
			t.Fatalf("%q would break a header", token)
		}
	})
}
