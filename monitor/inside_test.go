package monitor_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"worknode/monitor/wire"
)

func TestIdentityAndRights(t *testing.T) {
	n := newNode(t)
	out, code := n.output("c", func(s *wire.Start) {
		s.Init.UID, s.Init.GID, s.Init.Groups = 1000, 2000, []uint32{3000, 4000}
		s.Init.Caps = wire.Caps{Bounding: 1<<10 | 1<<0, Permitted: 1 << 10, Effective: 1 << 10, Inheritable: 1 << 10, Ambient: 1 << 10}
		s.Init.Seccomp = filter(unix.SYS_MKDIRAT, unix.SYS_MKDIR)
	}, "sh", "-c", "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:)' /proc/self/status; mkdir /tmp/x; echo $?; echo x > /dev/stdout; echo $?")
	if code != 0 {
		t.Errorf("code %d", code)
	}
	for _, want := range []string{
		"Uid:\t1000\t1000\t1000\t1000", "Gid:\t2000\t2000\t2000\t2000", "Groups:\t3000 4000",
		"CapInh:\t0000000000000400", "CapPrm:\t0000000000000400", "CapEff:\t0000000000000400", "CapBnd:\t0000000000000401",
		"CapAmb:\t0000000000000400", "NoNewPrivs:\t1", "Seccomp:\t2", "Operation not permitted\n", "\n1\nx\n0\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// Without no_new_privs the filter is loaded while CAP_SYS_ADMIN is still there, and the rights still end as asked.
func TestSeccompWithoutNoNewPrivs(t *testing.T) {
	n := newNode(t)
	out, _ := n.output("c", func(s *wire.Start) {
		s.Init.NoNewPrivs, s.Init.UID, s.Init.Caps = false, 1000, wire.Caps{}
		s.Init.Seccomp = filter(unix.SYS_MKDIRAT, unix.SYS_MKDIR)
	}, "sh", "-c", "grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp:)' /proc/self/status; mkdir /tmp/x")
	for _, want := range []string{"Uid:\t1000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t0", "Seccomp:\t2", "Operation not permitted"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// filter is a program that answers EPERM to the given calls and allows the rest.
func filter(calls ...uint32) []byte {
	prog := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}}
	for _, nr := range calls {
		prog = append(prog, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: nr},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)})
	}
	prog = append(prog, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	var out []byte
	for _, f := range prog {
		out = binary.NativeEndian.AppendUint16(out, f.Code)
		out = append(out, f.Jt, f.Jf)
		out = binary.NativeEndian.AppendUint32(out, f.K)
	}
	return out
}

func TestRootAndMounts(t *testing.T) {
	n := newNode(t)
	host := filepath.Join(n.dir, "host")
	for _, d := range []string{"data", "ro"} {
		if err := os.MkdirAll(filepath.Join(host, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(host+"/file", []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, _ := n.output("c", func(s *wire.Start) {
		s.Init.Root.Readonly = true
		s.Init.Cwd = "/tmp/deep/er"
		s.Init.Mounts = append(s.Init.Mounts,
			wire.Mount{Source: "tmpfs", Destination: "/tmp", Type: "tmpfs", Flags: unix.MS_NOSUID, Data: "size=1m"},
			wire.Mount{Source: host + "/data", Destination: "/data", Flags: unix.MS_BIND | unix.MS_REC},
			wire.Mount{Source: host + "/ro", Destination: "/new/dir", Flags: unix.MS_BIND | unix.MS_RDONLY},
			wire.Mount{Source: host + "/file", Destination: "/etc/new/file", Flags: unix.MS_BIND | unix.MS_RDONLY, File: true})
	}, "sh", "-c", `
		pwd
		touch /x 2>/dev/null; echo root $?
		touch /data/x; echo data $?
		touch /new/dir/x 2>/dev/null; echo ro $?
		cat /etc/new/file
		(echo y > /etc/new/file) 2>/dev/null; echo file $?
		cat /proc/timer_list | wc -c; ls /sys/firmware | wc -l
		(echo 1 > /proc/sys/kernel/ns_last_pid) 2>/dev/null; echo sys $?
		ls -l /dev/null | grep -c 'crw-rw-rw-.*1,  *3'
		readlink /dev/fd; readlink /dev/ptmx; ls /dev/pts
		echo $$
		mount | grep -c `+n.dir)
	want := "/tmp/deep/er\nroot 1\ndata 0\nro 1\nfrom the host\nfile 1\n0\n0\nsys 1\n1\n/proc/self/fd\npts/ptmx\nptmx\n1\n"
	if !strings.HasPrefix(out, want) {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
	if _, err := os.Stat(host + "/data/x"); err != nil {
		t.Errorf("the writable bind is not the host's directory: %v", err)
	}
}

func TestHostMountTableStaysClean(t *testing.T) {
	n := newNode(t)
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	n.start(n.container("c", "sleep", "1000"))
	after, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(after), n.dir) {
		t.Errorf("the host sees the container's mounts; before %d bytes, after\n%s", len(before), after)
	}
}

// A mount that appears on the host later shows up in a slave bind and not in a private one; one made inside a shared
// bind shows up on the host.
func TestPropagation(t *testing.T) {
	n := newNode(t)
	host := filepath.Join(n.dir, "p")
	for _, d := range []string{host + "/sub", host + "/up"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("tmpfs", host, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(host, unix.MNT_DETACH)
	if err := unix.Mount("", host, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{host + "/sub", host + "/up"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s := n.container("c", "sh", "-c", "mount -t tmpfs up /shared/up && touch /shared/up/seen && touch /slave/ready; sleep 1000")
	s.Init.Caps = wire.Caps{Bounding: allCaps, Effective: allCaps, Permitted: allCaps}
	bind := func(to string, p uintptr) wire.Mount {
		return wire.Mount{Source: host, Destination: to, Flags: unix.MS_BIND | unix.MS_REC, Propagation: []uintptr{p}}
	}
	s.Init.Mounts = append(s.Init.Mounts, bind("/private", unix.MS_PRIVATE|unix.MS_REC), bind("/slave", unix.MS_SLAVE|unix.MS_REC),
		bind("/shared", unix.MS_SHARED|unix.MS_REC))
	n.start(s)
	n.eventually("the container has mounted", func() bool { _, err := os.Stat(host + "/ready"); return err == nil })
	if _, err := os.Stat(host + "/up/seen"); err != nil {
		t.Errorf("the host does not see a mount made in the shared bind: %v", err)
	}
	defer unix.Unmount(host+"/up", unix.MNT_DETACH)
	if err := unix.Mount("tmpfs", host+"/sub", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(host+"/sub", unix.MNT_DETACH)
	if err := os.WriteFile(host+"/sub/late", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	out, _ := n.exec("e", "c", nil, "sh", "-c", "for d in private slave shared; do test -e /$d/sub/late; echo $d $?; done")
	if out != "private 1\nslave 0\nshared 0\n" {
		t.Errorf("a later mount of the host is seen as %q", out)
	}
}

// An image full of symlinks to the host: every mount and node must land inside the root.
func TestHostileImageCannotEscape(t *testing.T) {
	n := newNode(t)
	evil, outside := filepath.Join(n.dir, "evil"), filepath.Join(n.dir, "outside")
	for _, d := range []string{evil, evil + "/bin", evil + "/etc", outside} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	bb, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(evil+"/bin/sh", bb, 0o755); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 12)
	for link, to := range map[string]string{
		"proc": outside, "dev": up + outside[1:], "data": "/etc/../" + up + outside[1:], "etc/hosts": outside + "/hosts",
		"sys": "/loop1", "loop1": "/sys2", "cwd": outside,
	} {
		if err := os.Symlink(to, filepath.Join(evil, link)); err != nil {
			t.Fatal(err)
		}
	}
	file := n.dir + "/f"
	if err := os.WriteFile(file, []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := n.container("c", "/bin/sh", "-c", "true")
	s.Init.Root = wire.Root{Path: evil}
	s.Init.Cwd = "/cwd/sub"
	s.Init.Mounts = append(s.Init.Mounts,
		wire.Mount{Source: outside, Destination: "/data/x", Flags: unix.MS_BIND},
		wire.Mount{Source: file, Destination: "/etc/hosts", Flags: unix.MS_BIND, File: true})
	n.start(s)
	if e := n.exit("c"); e.Code != 0 {
		t.Errorf("ended as %+v", e)
	}
	left, err := os.ReadDir(outside)
	if err != nil || len(left) > 0 {
		t.Errorf("the image reached the host: %v %v", left, err)
	}
}

func TestExistingNamespacesAreJoined(t *testing.T) {
	n := newNode(t)
	n.start(n.container("a", "sleep", "1000"))
	pid := n.kept["a"].Pid
	out, _ := n.output("b", func(s *wire.Start) {
		s.Init.New = []string{"mnt"}
		s.Init.Join = map[string]string{}
		for _, ns := range []string{"ipc", "uts", "pid"} {
			s.Init.Join[ns] = fmt.Sprintf("/proc/%d/ns/%s", pid, ns)
		}
	}, "sh", "-c", "ps -o args | head -2 | tail -1; readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts; readlink /proc/self/ns/net")
	want := "sleep 1000\n"
	for _, ns := range []string{"ipc", "uts"} {
		l, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		want += l + "\n"
	}
	own, _ := os.Readlink("/proc/self/ns/net")
	if want += own + "\n"; out != want {
		t.Errorf("got\n%swant\n%s", out, want)
	}
	// Joining a pid namespace must not have moved the monitor's own children.
	if out, _ := n.output("d", nil, "sh", "-c", "echo $$"); out != "1\n" {
		t.Errorf("a later container's first pid is %q", out)
	}
}

func TestSysctlAndHostnameStayInside(t *testing.T) {
	n := newNode(t)
	before, err := os.ReadFile("/proc/sys/kernel/msgmax")
	if err != nil {
		t.Fatal(err)
	}
	out, _ := n.output("c", func(s *wire.Start) {
		s.Init.Hostname = "inside"
		s.Init.Sysctl = map[string]string{"kernel.msgmax": "4242"}
	}, "sh", "-c", "hostname; cat /proc/sys/kernel/msgmax")
	after, _ := os.ReadFile("/proc/sys/kernel/msgmax")
	if out != "inside\n4242\n" || string(after) != string(before) {
		t.Errorf("inside %q; the host's msgmax went from %s to %s", out, before, after)
	}
}

// A process that gets hold of its init's /proc/PID/exe must not be able to write the binary that the host runs. While
// the monitor lives the kernel would refuse that anyway (text file busy); the read-only mount refuses it always.
func TestInitBinaryIsReadOnly(t *testing.T) {
	n := newNode(t)
	s := n.container("c", "true")
	gate := filepath.Join(n.dir, "cgroup.procs") // init waits here until somebody reads
	if err := unix.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Init.Cgroup = []string{gate}
	done := make(chan error, 1)
	go func() {
		_, _, err := n.c.Start(n.ctx(), s, nil)
		done <- err
	}()
	var child string
	n.eventually("init runs", func() bool {
		for _, pid := range childrenOf(n.cmd.Process.Pid) {
			cmdline, _ := os.ReadFile("/proc/" + pid + "/cmdline")
			if strings.HasSuffix(string(cmdline), "\x00init\x00") {
				child = pid
			}
		}
		return child != ""
	})
	f, err := os.OpenFile("/proc/"+child+"/exe", os.O_WRONLY|os.O_TRUNC, 0)
	if err == nil {
		f.Close()
	}
	if !errors.Is(err, unix.EROFS) {
		t.Errorf("opening init's binary for writing: %v, want a read-only file system", err)
	}
	r, err := os.Open(gate)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	n.exit("c")
}
