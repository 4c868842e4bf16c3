package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"worknode/fault"
)

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestALaterFileReplacesWhatItNames(t *testing.T) {
	file := write(t, filepath.Join(t.TempDir(), "rt[1].toml"), "root = '/a'\n[images]\npinned = ['a', 'b']\nlayers-at-once = 2\n[[images.verify]]\nscope = 'x'\ndo = 'reject'\n")
	write(t, file+".d/20-late.toml", "[images]\npinned = ['c']\n[[images.verify]]\ndo = 'accept'\n")
	write(t, file+".d/10-early.toml", "root = '/b'\n[images]\npinned = ['d']\npull-progress-timeout = '5m'\n")
	write(t, file+".d/30-not.conf", "nonsense")
	got, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Root = "/b"
	want.Images.Pinned, want.Images.Parallel, want.Images.ProgressTimeout = []string{"c"}, 2, Duration(5*time.Minute)
	want.Images.Verify = []Verify{{Do: "accept"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestWhatIsPrintedIsReadBack(t *testing.T) {
	want := Default()
	want.Handlers = []Handler{{Name: "runc", Path: "/usr/bin/runc", Args: []string{"--debug"}}}
	want.Images.Verify = []Verify{{Scope: "reg.example/team", Do: "signed", Keys: []string{"/etc/k.pub"}}}
	want.Log.Level, want.Images.Pinned = "debug", []string{"a"}
	text, err := want.Text()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Load(write(t, filepath.Join(t.TempDir(), "c.toml"), string(text)))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s\n%s", diff, text)
	}
}

func TestAFaultIsToldWithFileLineAndField(t *testing.T) {
	for text, want := range map[string]string{
		"\nrot = 1":            "line 2: field rot is unknown",
		"[images]\npined = []": "line 2: field images.pined is unknown",
		"[images]\npinned = 7": "field images.pinned",
		"root = ":              "line 1",
		"[images]\npull-progress-timeout = 'soon'":                       "want a time such as 90s",
		"[images]\nlayers-at-once = 99":                                  "field images.layers-at-once: 99: want 1 to 16",
		"[log]\nlevel = 'loud'":                                          "field log.level",
		"[log]\nformat = 'xml'":                                          "field log.format",
		"cgroup-driver = 'systemd'":                                      "field cgroup-driver",
		"[network]\npod-cidr = '10.0.0.0/31'":                            "field network.pod-cidr",
		"[metrics]\naddress = '9000'":                                    "field metrics.address",
		"[[images.verify]]\nscope = 'a'\ndo = 'signed'":                  "images.verify[0].keys: without a key",
		"[[images.verify]]\nscope = 'a'\ndo = 'maybe'":                   "want signed, accept or reject",
		"[[images.verify]]\ndo='accept'\n[[images.verify]]\ndo='reject'": "a second rule",
		"[[images.verify]]\nscope='a/*'\ndo='reject'":                    "images.verify[0].scope",
		"[[images.verify]]\ndo='signed'\nkeys=['k']":                     "want an absolute path",
	} {
		file := write(t, filepath.Join(t.TempDir(), "c.toml"), text)
		_, err := Load(file)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%q: %v, want %q and the file's name", text, err, want)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "absent.toml")); err == nil {
		t.Error("a file that is named and absent was no fault")
	}
}

func TestChangesAreSortedByWhetherTheyCanFollow(t *testing.T) {
	a, b := Default(), Default()
	b.Socket, b.Images.Pinned, b.Log.Level, b.Log.Format = "/x", []string{"y"}, "warn", "json"
	live, restart := Changed(a, b)
	if diff := cmp.Diff([]string{"log.level", "images.pinned"}, live); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"socket", "log.format"}, restart); diff != "" {
		t.Error(diff)
	}
}

// Every field is in docs/runtime.md, with the mark of those that follow the file.
func TestEveryFieldIsDocumented(t *testing.T) {
	data, err := os.ReadFile("../../docs/runtime.md")
	if err != nil {
		t.Fatal(err)
	}
	var each func(v reflect.Type, at string)
	each = func(v reflect.Type, at string) {
		for i := range v.NumField() {
			f := v.Field(i)
			name := strings.TrimPrefix(at+"."+f.Tag.Get("toml"), ".")
			kind := f.Type
			if kind.Kind() == reflect.Slice {
				kind = kind.Elem()
			}
			if kind.Kind() == reflect.Struct {
				each(kind, name)
				continue
			}
			row := "| `" + name + "` |"
			if f.Tag.Get("live") != "" {
				row += " live |"
			}
			if !strings.Contains(string(data), row) {
				t.Errorf("docs/runtime.md has no row that begins %q", row)
			}
		}
	}
	each(reflect.TypeFor[Config](), "")
}

func FuzzFile(f *testing.F) {
	text, err := Default().Text()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("[[images.verify]]\nscope = 'a'\nkeys = ['/k']\ndo = 'signed'\n"))
	f.Add([]byte("[images]\nPinned = 'x'"))
	f.Add([]byte("images = 1\nlog = []"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := Default()
		if parse(&c, data) != nil || c.Check() != nil {
			return
		}
		text, err := c.Text()
		if err != nil {
			t.Fatal(err)
		}
		again := Default()
		if err := parse(&again, text); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
	})
}
