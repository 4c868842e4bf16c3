package mount

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// apart moves this test's thread into a mount namespace of its own, and throws the thread away afterwards.
func apart(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("mounting needs root; run these tests as root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
}

func TestRootKeepsLookupsInside(t *testing.T) {
	base := t.TempDir()
	root, outside := base+"/root", base+"/outside"
	for _, d := range []string{root + "/a", outside} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"abs": outside, "up": "../../../../../../../../" + outside[1:], "a/rel": "../b/c", "self": "self"} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	r, err := OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for name, want := range map[string]string{
		"/abs/x": outside + "/x", "/up/y/z": outside + "/y/z", "/a/rel/d": "/b/c/d", "../../e": "/e", "/a/../../f": "/f", "/": "",
	} {
		fd, err := r.Dir(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, _ := os.Readlink(FdPath(fd))
		unix.Close(fd)
		if got != root+want {
			t.Errorf("%s led to %s, want %s", name, got, root+want)
		}
	}
	if _, err := r.Dir("/self/x"); err == nil {
		t.Error("a symlink to itself was followed")
	}
	fd, err := r.File("/abs/file")
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("something was made outside: %v", left)
	}
	if _, err := os.Stat(root + outside + "/file"); err != nil {
		t.Errorf("the file is not inside: %v", err)
	}
}

func TestOverlayWithManyLayersAndTwice(t *testing.T) {
	base := t.TempDir()
	apart(t)
	// Long names of many layers exceed the page that the old call takes.
	var lower []string
	for i := range 100 {
		d := filepath.Join(base, strings.Repeat("x", 60)+string(rune('a'+i%26))+string(rune('a'+i/26)))
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		lower = append(lower, d)
	}
	if err := os.WriteFile(lower[99]+"/bottom", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"u", "w"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, layers := range [][]string{lower, lower[98:]} {
		for range 2 { // the second time meets the mark of the first volatile mount
			err := Overlay(base+"/u", layers, base+"/u", base+"/w", true)
			if len(layers) == 100 && fault.Is(err, fault.Unsupported) && strings.Contains(err.Error(), "6.5") {
				break // an older kernel, which says so
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(base + "/u/bottom"); err != nil {
				t.Error(err)
			}
			if err := unix.Unmount(base+"/u", 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := Overlay(base+"/u", []string{base + "/absent"}, base+"/u", base+"/w", true); err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("a missing layer: %v", err)
	}
}

func TestBindAddsFlagsAndKeepsTheSources(t *testing.T) {
	base := t.TempDir()
	apart(t)
	for _, d := range []string{"src", "dst"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := Tmpfs(base+"/src", "size=1m", unix.MS_NOSUID|unix.MS_NODEV); err != nil {
		t.Fatal(err)
	}
	if err := Bind(base+"/src", base+"/dst", unix.MS_RDONLY, false); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	points := parse(string(b))
	i := slices.IndexFunc(points, func(p Point) bool { return p.Path == base+"/dst" })
	if i < 0 {
		t.Fatal("the bind is not in the table")
	}
	for _, o := range []string{"ro", "nosuid", "nodev"} {
		if !slices.Contains(strings.Split(points[i].Options, ","), o) {
			t.Errorf("options %s lack %s", points[i].Options, o)
		}
	}
	for _, name := range []string{"dst", "dst", "src"} { // not mounted is fine
		if err := Detach(base + "/" + name); err != nil {
			t.Error(err)
		}
	}
}

func TestTableLines(t *testing.T) {
	got := parse("36 35 98:0 /a\\040b /mnt\\011x rw,noatime shared:1 master:2 - ext4 /dev/root rw,errors=continue\nbroken\n")
	want := Point{ID: 36, Parent: 35, Root: "/a b", Path: "/mnt\tx", Type: "ext4", Source: "/dev/root", Options: "rw,noatime",
		SuperOptions: "rw,errors=continue", Shared: 1, Slave: 2}
	if len(got) != 1 || got[0] != want {
		t.Errorf("got %+v", got)
	}
}
