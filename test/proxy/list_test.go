package proxy

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"worknode/test/bed"
	"worknode/test/harness"
)

// TestEveryNftLists: with the one that is installed, and those that scripts/upstream nft has unpacked.
func TestEveryNftLists(t *testing.T) { listable(t, 1) }

// everything has a Service of each kind, so that each rule and each set of a proxy has something in it; but affinity.
const everything = `
service all/plain ip 172.30.0.71 port a 80/tcp port b 53/udp port c 53/sctp
service all/empty LoadBalancer ip 172.30.0.72 lb 1.2.3.72 external 192.168.99.72 port a 80/tcp node 3072
service all/cluster LoadBalancer eTP Cluster ip 172.30.0.73 lb 1.2.3.73 external 192.168.99.73 range 203.0.113.0/25 range 192.168.0.0/24 port a 80/tcp node 3073
service all/local LoadBalancer eTP Local iTP Local health 30074 ip 172.30.0.74 lb 1.2.3.74 external 192.168.99.74 range 203.0.113.0/24 port a 80/tcp node 3074
service all/elsewhere LoadBalancer eTP Local iTP Local health 30075 ip 172.30.0.75 lb 1.2.3.75 port a 80/tcp node 3075
slice all/plain port a 80/tcp port b 53/udp port c 53/sctp at 10.180.0.1 here at 10.180.1.1 at 10.180.1.2
slice all/cluster port a 80/tcp at 10.180.0.1 here at 10.180.1.1
slice all/local port a 80/tcp at 10.180.0.1 here at 10.180.0.2 here at 10.180.1.1
slice all/elsewhere port a 80/tcp at 10.180.1.1`

const affinities = `
service all/sticky LoadBalancer affinity 100 ip 172.30.0.76 lb 1.2.3.76 range 203.0.113.0/24 port a 80/tcp node 3076 port b 53/udp node 3077
service all/sticky-local NodePort affinity 200 eTP Local iTP Local ip 172.30.0.77 port a 80/tcp node 3078
slice all/sticky port a 80/tcp port b 53/udp at 10.180.0.1 here at 10.180.1.1 at 10.180.1.2 at 10.180.1.3
slice all/sticky-local port a 80/tcp at 10.180.0.1 here at 10.180.0.2 here at 10.180.1.1`

// listable checks that every nft at hand can list what the proxy made. Some expressions make some of them abort (so
// would firewalld, which links the library).
func listable(t *testing.T, atLeast int) {
	tools := nfts(t)
	if len(tools) < atLeast {
		t.Errorf("only %v are at hand", tools)
	}
	s := newStage(t, worknode, configs[0])
	s.apply(everything)
	for file, version := range tools {
		s.list(file, version)
	}
	s.apply(affinities)
	for _, to := range []string{"172.30.0.76:80", "172.30.0.77:80"} { // leaves elements behind
		twice(packet(bed.PodIP, to, "tcp"), func(p bed.Packet) { s.answer(p) })
	}
	for file, version := range tools {
		// Of before 1.0 none can list a map whose data has two parts and that packets write to: what affinity is made of.
		// Kubernetes wants 1.0.1, as such versions crash on kube-proxy's table too.
		if !strings.Contains(version, " v0.") {
			s.list(file, version)
		}
	}
}

// nfts are all versions at hand, by path.
func nfts(t *testing.T) map[string]string {
	files, err := filepath.Glob(harness.Top() + "/.cache/upstream/nft/*/nft")
	if err != nil {
		t.Fatal(err)
	}
	if file, err := exec.LookPath("nft"); err == nil {
		files = append(files, file)
	}
	out := map[string]string{}
	for _, file := range files {
		version, err := exec.Command(file, "--version").CombinedOutput()
		if err != nil {
			t.Errorf("%s --version: %v: %s", file, err, version)
		}
		out[file] = strings.TrimSpace(string(version))
	}
	return out
}

func (s *stage) list(file, version string) {
	s.t.Helper()
	for _, args := range [][]string{{"list", "ruleset"}, {"-j", "list", "ruleset"}, {"-n", "-a", "list", "ruleset"}} {
		out, err := s.bed.Command("node", append([]string{file}, args...)...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "worknode-proxy") || !strings.Contains(string(out), "172.30.0.71") {
			s.t.Errorf("%s %v: %v; it printed:\n%s", version, args, err, tail(string(out)))
		}
	}
}

func tail(text string) string { return text[max(0, len(text)-2000):] }
