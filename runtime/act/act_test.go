package act

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/runtime/state"
)

// layer makes a directory from "path" -> content; "dir/" makes a directory, "-> target" a link, "whiteout" and "opaque"
// what overlayfs understands by them.
func layer(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range files {
		p := filepath.Join(dir, name)
		must(os.MkdirAll(filepath.Dir(p), 0o755))
		switch target, link := strings.CutPrefix(content, "-> "); {
		case strings.HasSuffix(name, "/"):
			must(os.MkdirAll(p, 0o755))
			if content == "opaque" {
				must(unix.Lsetxattr(p, "trusted.overlay.opaque", []byte("y"), 0))
			}
		case link:
			must(os.Symlink(target, p))
		case content == "whiteout":
			must(unix.Mknod(p, unix.S_IFCHR, 0))
		default:
			must(os.WriteFile(p, []byte(content), 0o644))
		}
	}
	return dir
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("whiteouts and trusted attributes need root: run this test as root")
	}
}

// TestView compares what we read with what overlayfs shows for the same layers.
func TestView(t *testing.T) {
	needRoot(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("the host's"), 0o644); err != nil {
		t.Fatal(err)
	}
	top := layer(t, map[string]string{
		"a": "top", "gone": "whiteout", "opq/": "opaque", "opq/new": "new", "turned": "now a file", "link": "-> etc/passwd", "abs": "-> /b",
		"up": "-> ../../../../b", "escape": "-> " + secret, "loop": "-> loop", "dirlink": "-> usr/lib", "etc/x": "x", "was-link/": "", "was-link/f": "real",
	})
	low := layer(t, map[string]string{
		"a": "low", "b": "b of low", "gone": "must not show", "opq/old": "must not show", "turned/inside": "must not show", "etc/passwd": "pw",
		"usr/lib/l": "library", "was-link": "-> usr/lib",
	})
	merged := t.TempDir()
	if err := unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, "lowerdir="+top+":"+low); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(merged, unix.MNT_DETACH)
	root, err := os.OpenRoot(merged)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	v := view{top, low}
	for _, name := range []string{"/a", "/b", "/gone", "/opq/new", "/opq/old", "/turned", "/turned/inside", "/etc/x", "/etc/passwd", "/link", "/dirlink/l",
		"/was-link/f", "/was-link/l", "/none", "/a/b", "/usr/../b", "/loop"} {
		want, werr := root.ReadFile(strings.TrimPrefix(name, "/"))
		got, gerr := v.read(name, 1000)
		if (werr == nil) != (gerr == nil) || string(want) != string(got) {
			t.Errorf("%s: %q %v, overlayfs has %q %v", name, got, gerr, want, werr)
		}
	}
	for name, want := range map[string]string{"/abs": "b of low", "/up": "b of low"} { // inside the image, / is its root
		if got, err := v.read(name, 1000); err != nil || string(got) != want {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
	if got, err := v.read("/escape", 1000); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a link to the host's file reads %q, %v", got, err)
	}
	if _, err := v.read("/b", 3); !fault.Is(err, fault.Invalid) {
		t.Errorf("longer than the limit: %v", err)
	}
	if _, err := v.read("/etc", 1000); !fault.Is(err, fault.Invalid) {
		t.Errorf("a directory: %v", err)
	}
}

func TestUser(t *testing.T) {
	dir := layer(t, map[string]string{
		"etc/passwd": "root:x:0:0::/root:/bin/sh\nalice:x:1001:1002::/home/alice:/bin/sh\nbob:x:7:8::/b:\n",
		"etc/group":  "root:x:0:\nstaff:x:50:alice,bob\nalice:x:1002:\nextra:x:60:alice\n",
	})
	empty := layer(t, map[string]string{"x": ""})
	id := func(n int64) *cri.Int64Value { return &cri.Int64Value{Value: n} }
	for name, row := range map[string]struct {
		layer, image string
		sc           *cri.LinuxContainerSecurityContext
		want         state.User
		kind         fault.Kind
	}{
		"root by default":            {dir, "", nil, state.User{Groups: []uint32{0}, Home: "/root"}, 0},
		"image's name":               {dir, "alice", nil, state.User{UID: 1001, GID: 1002, Groups: []uint32{1002, 50, 60}, Home: "/home/alice"}, 0},
		"image's number":             {dir, "1001", nil, state.User{UID: 1001, GID: 1002, Groups: []uint32{1002, 50, 60}, Home: "/home/alice"}, 0},
		"image's pair":               {dir, "bob:staff", nil, state.User{UID: 7, GID: 50, Groups: []uint32{50}, Home: "/b"}, 0},
		"number not in passwd":       {dir, "4000", nil, state.User{UID: 4000, Groups: []uint32{0}}, 0},
		"no passwd at all":           {empty, "4000:9", nil, state.User{UID: 4000, GID: 9, Groups: []uint32{9}}, 0},
		"request beats image":        {dir, "alice", &cri.LinuxContainerSecurityContext{RunAsUser: id(7)}, state.User{UID: 7, GID: 8, Groups: []uint32{8, 50}, Home: "/b"}, 0},
		"request by name":            {dir, "", &cri.LinuxContainerSecurityContext{RunAsUsername: "bob"}, state.User{UID: 7, GID: 8, Groups: []uint32{8, 50}, Home: "/b"}, 0},
		"request's group":            {dir, "", &cri.LinuxContainerSecurityContext{RunAsUser: id(7), RunAsGroup: id(5)}, state.User{UID: 7, GID: 5, Groups: []uint32{5, 50}, Home: "/b"}, 0},
		"more groups":                {dir, "bob", &cri.LinuxContainerSecurityContext{SupplementalGroups: []int64{50, 99}}, state.User{UID: 7, GID: 8, Groups: []uint32{8, 50, 99}, Home: "/b"}, 0},
		"strict":                     {dir, "alice", &cri.LinuxContainerSecurityContext{SupplementalGroups: []int64{99}, SupplementalGroupsPolicy: cri.SupplementalGroupsPolicy_Strict}, state.User{UID: 1001, GID: 1002, Groups: []uint32{1002, 99}, Home: "/home/alice"}, 0},
		"unknown name":               {dir, "mallory", nil, state.User{}, fault.Invalid},
		"unknown group":              {dir, "alice:nobody", nil, state.User{}, fault.Invalid},
		"group out of range":         {dir, "", &cri.LinuxContainerSecurityContext{SupplementalGroups: []int64{-1}}, state.User{}, fault.Invalid},
		"name in image without file": {empty, "alice", nil, state.User{}, fault.Invalid},
	} {
		got, err := User(filepath.Dir(row.layer), []string{filepath.Base(row.layer)}, row.image, row.sc)
		if fault.Of(err) != row.kind {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err == nil && (got.UID != row.want.UID || got.GID != row.want.GID || got.Home != row.want.Home || !slices.Equal(got.Groups, row.want.Groups)) {
			t.Errorf("%s: %+v, want %+v", name, got, row.want)
		}
	}
	huge := layer(t, map[string]string{"etc/passwd": strings.Repeat("x", maxAccounts+1)})
	if _, err := User(filepath.Dir(huge), []string{filepath.Base(huge)}, "alice", nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("a huge passwd file: %v", err)
	}
}

func TestPauseProgram(t *testing.T) {
	if len(pauseCode) == 0 {
		t.Fatal("no pause code for this architecture")
	}
	p := executable(pauseCode)
	if len(p) > 4096 {
		t.Errorf("%d bytes", len(p))
	}
	dir := t.TempDir()
	h := &Hands{Root: dir}
	for range 2 {
		root, err := h.pauseRoot()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(root, "pause")); err != nil || string(got) != string(p) {
			t.Errorf("%v", err)
		}
	}
}
