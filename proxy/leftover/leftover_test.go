package leftover

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOnlyKubeProxysChainsGo(t *testing.T) {
	for _, c := range []struct{ name, table, saved, want, kept string }{
		{"nothing of ours", "nat", "*nat\n:PREROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n-A PREROUTING -j DOCKER\nCOMMIT\n", "", ""},
		{"the kubelet's stay", "filter", "*filter\n:KUBE-FIREWALL - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n-A INPUT -j KUBE-FIREWALL\nCOMMIT\n", "", ""},
		{"services and endpoints", "nat", `*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABC - [0:0]
:KUBE-SEP-DEF - [0:0]
:CNI-1 - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -j CNI-1
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment "a -j b" -j KUBE-SVC-ABC
-A KUBE-SVC-ABC -j KUBE-SEP-DEF
COMMIT
`, `*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABC - [0:0]
:KUBE-SEP-DEF - [0:0]
-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-X KUBE-SERVICES
-X KUBE-SVC-ABC
-X KUBE-SEP-DEF
COMMIT
`, ""},
		{"somebody leans on a chain", "nat", `*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-SERVICES - [0:0]
:HOSTPORTS - [0:0]
-A OUTPUT -j KUBE-SERVICES
-A HOSTPORTS -s 10.1.0.0/16 -j KUBE-MARK-MASQ
COMMIT
`, `*nat
:KUBE-SERVICES - [0:0]
-D OUTPUT -j KUBE-SERVICES
-X KUBE-SERVICES
COMMIT
`, "KUBE-MARK-MASQ"},
		{"a chain that stays keeps what it leads to", "nat", ":KUBE-SVC-A - [0:0]\n:KUBE-SEP-A - [0:0]\n-A MINE -g KUBE-SVC-A\n-A KUBE-SVC-A -j KUBE-SEP-A\n", "", "KUBE-SVC-A KUBE-SEP-A"},
		{"with counters", "mangle", ":KUBE-PROXY-CANARY - [0:0]\n[1:60] -A INPUT -j KUBE-PROXY-CANARY\n",
			"*mangle\n:KUBE-PROXY-CANARY - [0:0]\n-D INPUT -j KUBE-PROXY-CANARY\n-X KUBE-PROXY-CANARY\nCOMMIT\n", ""},
	} {
		script, kept := removal(c.table, []byte(c.saved))
		if script != c.want || strings.Join(kept, " ") != c.kept {
			t.Errorf("%s: kept %q\n%s\nwant\n%s", c.name, kept, script, c.want)
		}
	}
}

// On the real kernel, by both kinds of iptables: what kube-proxy made goes, a neighbour's rules stay, and once more is fine.
func TestLeftoversGoFromTheKernel(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces and needs root")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	run := func(stdin string, argv ...string) string {
		t.Helper()
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", argv, err, out)
		}
		return string(out)
	}
	made := "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-X - [0:0]\n:MINE - [0:0]\n-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n" +
		"-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-X\n-A PREROUTING -j MINE\nCOMMIT\n" +
		"*filter\n:KUBE-FORWARD - [0:0]\n:KUBE-FIREWALL - [0:0]\n-A FORWARD -j KUBE-FORWARD\n-A INPUT -j KUBE-FIREWALL\nCOMMIT\n"
	all := []string{"iptables-nft", "iptables-legacy", "ip6tables-nft"}
	for _, tool := range all {
		script := made
		if strings.HasPrefix(tool, "ip6") {
			script = strings.ReplaceAll(made, "10.96.0.1/32", "fd00::1/128")
		}
		run(script, tool+"-restore")
	}
	for range 2 {
		if err := IPTables(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	for _, tool := range all {
		left := run("", tool+"-save")
		for _, gone := range []string{"KUBE-SERVICES", "KUBE-SVC", "KUBE-FORWARD"} {
			if strings.Contains(left, gone) {
				t.Errorf("%s: %s is still there:\n%s", tool, gone, left)
			}
		}
		for _, stays := range []string{"-A PREROUTING -j MINE", "-A INPUT -j KUBE-FIREWALL"} {
			if !strings.Contains(left, stays) {
				t.Errorf("%s: %s is gone:\n%s", tool, stays, left)
			}
		}
	}
}
