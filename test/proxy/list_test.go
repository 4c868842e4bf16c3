package proxy

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"worknode/test/bed"
	"worknode/test/harness"
)

// everything has a Service of each kind, so that each rule and each set of a proxy has something in it.
const everything = `
service all/plain ip 172.30.0.71 port a 80/tcp port b 53/udp port c 53/sctp
service all/empty LoadBalancer ip 172.30.0.72 lb 1.2.3.72 external 192.168.99.72 port a 80/tcp node 3072
service all/cluster LoadBalancer eTP Cluster ip 172.30.0.73 lb 1.2.3.73 external 192.168.99.73 range 203.0.113.0/25 range 192.168.0.0/24 port a 80/tcp node 3073
service all/local LoadBalancer eTP Local iTP Local health 30074 ip 172.30.0.74 lb 1.2.3.74 external 192.168.99.74 range 203.0.113.0/24 port a 80/tcp node 3074
service all/elsewhere LoadBalancer eTP Local iTP Local health 30075 ip 172.30.0.75 lb 1.2.3.75 port a 80/tcp node 3075
service all/sticky LoadBalancer affinity 100 ip 172.30.0.76 lb 1.2.3.76 range 203.0.113.0/24 port a 80/tcp node 3076 port b 53/udp node 3077
service all/sticky-local NodePort affinity 200 eTP Local iTP Local ip 172.30.0.77 port a 80/tcp node 3078
slice all/plain port a 80/tcp port b 53/udp port c 53/sctp at 10.180.0.1 here at 10.180.1.1 at 10.180.1.2
slice all/cluster port a 80/tcp at 10.180.0.1 here at 10.180.1.1
slice all/local port a 80/tcp at 10.180.0.1 here at 10.180.0.2 here at 10.180.1.1
slice all/elsewhere port a 80/tcp at 10.180.1.1
slice all/sticky port a 80/tcp port b 53/udp at 10.180.0.1 here at 10.180.1.1 at 10.180.1.2 at 10.180.1.3
slice all/sticky-local port a 80/tcp at 10.180.0.1 here at 10.180.0.2 here at 10.180.1.1
`

// listable checks that every nft at hand can list what a proxy made: those of other releases come from
// `scripts/upstream nft`. Some expressions make some of them abort (so would firewalld, which links the library).
func listable(t *testing.T, who contestant, config string, atLeast int) {
	s := newStage(t, who, configNamed(t, config))
	s.apply(everything)
	for _, p := range []string{"172.30.0.76:80", "172.30.0.77:80"} { // affinity leaves elements behind
		twice(packet("10.0.0.2", p, "tcp"), func(p bed.Packet) { s.answer(p) })
	}
	tools, err := filepath.Glob(harness.Top() + "/.cache/upstream/nft/*/nft")
	s.must(err)
	if file, err := exec.LookPath("nft"); err == nil {
		tools = append(tools, file)
	}
	if len(tools) < atLeast {
		t.Errorf("only %v are at hand", tools)
	}
	for _, file := range tools {
		version, err := exec.Command(file, "--version").CombinedOutput()
		if err != nil {
			t.Errorf("%s --version: %v: %s", file, err, version)
			continue
		}
		for _, args := range [][]string{{"list", "ruleset"}, {"-j", "list", "ruleset"}, {"-n", "-a", "list", "ruleset"}} {
			out, err := s.bed.Command("node", append([]string{file}, args...)...).CombinedOutput()
			if err != nil || !strings.Contains(string(out), who.name) || !strings.Contains(string(out), "172.30.0.71") {
				t.Errorf("%s%v: %v; it printed:\n%s", version, args, err, tail(string(out)))
			}
		}
	}
	t.Logf("listed by %d versions of nft", len(tools))
}

func tail(text string) string { return text[max(0, len(text)-2000):] }
