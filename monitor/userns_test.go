package monitor_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/cgroup"
	"worknode/kernel/netns"
	"worknode/monitor/wire"
)

// hostBase is the host's id of the tests' container root.
const hostBase = 700000

// mapped gives a container the user, net, ipc and uts namespaces of a pod with a user namespace.
func (n *node) mapped(s *wire.Start) {
	n.t.Helper()
	pins := filepath.Join(n.dir, "pins")
	if !netns.Pinned(pins + "/user") {
		if err := netns.CreateOwned(pins, "pod", netns.IDMap{UID: hostBase, GID: hostBase, Size: 65536}, netns.Net, netns.IPC, netns.UTS); err != nil {
			n.t.Fatal(err)
		}
		n.t.Cleanup(func() {
			if err := netns.Unpin(pins); err != nil {
				n.t.Error(err)
			}
		})
	}
	s.Init.New = []string{"mnt", "pid", "cgroup"}
	s.Init.Join = map[string]string{"user": pins + "/user", "net": pins + "/net", "ipc": pins + "/ipc", "uts": pins + "/uts"}
	s.Init.IDMap = &wire.IDMap{UID: hostBase, GID: hostBase, Size: 65536}
	s.Init.Root.IDMap = true
	for _, dir := range []string{s.Init.Root.Upper, s.Init.Root.Work} {
		if err := os.Chown(dir, hostBase, hostBase); err != nil {
			n.t.Fatal(err)
		}
	}
}

// Root inside is nobody outside, and yet the image, the volumes, /dev and its own processes look as ever.
func TestUserNamespace(t *testing.T) {
	n := newNode(t)
	host := filepath.Join(n.dir, "volume")
	if err := os.Mkdir(host, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(host+"/mine", []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, code := n.output("c", func(s *wire.Start) {
		n.mapped(s)
		n.limited(s, cgroup.Resources{})
		s.Init.Caps = wire.Caps{Bounding: allCaps, Effective: allCaps, Permitted: allCaps}
		s.Init.NoNewPrivs = false
		s.Init.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "7"}
		s.Init.Mounts = append(s.Init.Mounts,
			wire.Mount{Source: "tmpfs", Destination: "/tmp", Type: "tmpfs", Flags: unix.MS_NOSUID, Data: "size=1m"},
			wire.Mount{Source: host, Destination: "/mapped", Flags: unix.MS_BIND | unix.MS_REC, IDMap: true},
			wire.Mount{Source: host, Destination: "/plain", Flags: unix.MS_BIND | unix.MS_REC})
	}, "sh", "-c", `
		id -u; cat /proc/self/uid_map | tr -s ' '
		stat -c '%u:%g' /bin/busybox /mapped /plain /dev/null /dev/pts /tmp /dev
		touch /new /bin/new /mapped/new && stat -c '%u' /new /mapped/new
		cat /mapped/mine; cat /plain/mine 2>/dev/null; echo plain $?
		echo x > /dev/null; echo null $?; echo out > /dev/stdout; echo $$
		hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start
		mount -t tmpfs none /tmp; echo mount $?; hostname other; echo hostname $?
		mknod /x c 1 3 2>/dev/null; echo mknod $?
		(cat /proc/kcore; cat /proc/timer_list) 2>/dev/null | wc -c
	`)
	want := "0\n 0 700000 65536\n0:0\n0:0\n65534:65534\n0:0\n0:0\n0:0\n0:0\n0\n0\nsecret\nplain 1\nnull 0\nout\n1\npod\n7\nmount 0\nhostname 0\nmknod 1\n0\n"
	if out != want || code != 0 {
		t.Errorf("code %d, got\n%s\nwant\n%s", code, out, want)
	}
	var st unix.Stat_t
	if err := unix.Stat(host+"/new", &st); err != nil || st.Uid != 0 {
		t.Errorf("a file in the mapped volume belongs to %d on the host, not to 0 (%v)", st.Uid, err)
	}
	if err := unix.Stat(n.dir+"/c/u/new", &st); err != nil || st.Uid != hostBase {
		t.Errorf("a file in the writable layer belongs to %d on the host, not to %d (%v)", st.Uid, hostBase, err)
	}
}

func TestUserNamespaceProcesses(t *testing.T) {
	n := newNode(t)
	s := n.container("c", "sh", "-c", "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.1; done")
	n.mapped(&s)
	n.limited(&s, cgroup.Resources{})
	s.Init.UID, s.Init.GID = 1000, 1000
	score := 500
	s.Init.OOMScoreAdj = &score
	p := n.start(s)
	n.eventually("the container is ready", func() bool { return strings.Contains(n.logText("c"), "ready") })
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d", p.Pid), &st); err != nil || st.Uid != hostBase+1000 {
		t.Errorf("the process belongs to %d on the host, not to %d (%v)", st.Uid, hostBase+1000, err)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.Pid)); err != nil || string(b) != "500\n" {
		t.Errorf("OOM score %q (%v)", b, err)
	}
	owner := func(kind string) uint64 {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", p.Pid, kind), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if kind != "user" {
			user, err := unix.IoctlRetInt(fd, unix.NS_GET_USERNS)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(user)
			fd = user
		}
		if err := unix.Fstat(fd, &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	for _, kind := range []string{"mnt", "pid", "cgroup", "net", "ipc", "uts"} {
		if owner(kind) != owner("user") {
			t.Errorf("the %s namespace does not belong to the container's user namespace", kind)
		}
	}
	out, code := n.exec("e", "c", func(s *wire.Start) { s.Init.IDMap = &wire.IDMap{UID: hostBase, GID: hostBase, Size: 65536} },
		"sh", "-c", "id -u; cat /proc/self/uid_map | tr -s ' '; cat /proc/self/oom_score_adj; ps | grep -c sleep; echo x > /dev/stdout; grep CapEff /proc/self/status; ls /proc/self/fd | wc -l")
	if !strings.HasPrefix(out, "0\n 0 700000 65536\n500\n") || !strings.HasSuffix(out, "x\nCapEff:\t00000000a80425fb\n4\n") || code != 0 {
		t.Errorf("exec: code %d\n%s", code, out)
	}
	if err := n.c.Signal(n.ctx(), "c", 15, false); err != nil {
		t.Fatal(err)
	}
	if e := n.exit("c"); e.Code != 7 {
		t.Errorf("exit %+v, want code 7", e)
	}
	if text := n.logText("c"); !strings.HasSuffix(text, "bye\n") {
		t.Errorf("log %q", text)
	}
}

func TestUserNamespaceTerminal(t *testing.T) {
	n := newNode(t)
	s := n.container("c", "sh", "-c", "tty; stat -c '%u %g' /dev/pts/0 /dev/console; test -t 0 && echo terminal")
	n.mapped(&s)
	s.Terminal, s.Init.UID = true, 1000
	n.start(s)
	n.exit("c")
	got := strings.ReplaceAll(n.logText("c"), "\r", "")
	if !strings.HasPrefix(got, "/dev/") || !strings.Contains(got, "1000 0") || !strings.HasSuffix(got, "terminal\n") {
		t.Errorf("got %q", got)
	}
}

func TestUserNamespaceFailures(t *testing.T) {
	n := newNode(t)
	for _, tc := range []struct {
		name, want string
		edit       func(*wire.Start)
	}{
		{"absent", "no such file", func(s *wire.Start) { s.Init.Join["user"] = n.dir + "/nowhere" }},
		{"other", "error number 022", func(s *wire.Start) { s.Init.Join["user"] = "/proc/self/ns/user"; s.Init.Root.IDMap = false }},
		{"program", "absent", func(s *wire.Start) { s.Init.Args = []string{"absent"} }},
	} {
		s := n.container(tc.name, "true")
		n.mapped(&s)
		tc.edit(&s)
		_, files, err := n.c.Start(n.ctx(), s, nil)
		for _, f := range files {
			f.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		if tc.name == "program" && !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: kind %v", tc.name, fault.Of(err))
		}
	}
}
