package node

import (
	"net"
	"testing"
	"time"

	"github.com/miekg/dns"

	"worknode/kernel/island"
	"worknode/kernel/netns"
	"worknode/test/harness"
)

// Names of Services are answered from what was last known while the supervisor, and the API with it, is gone; and what
// people ask of the proxy is answered too.
func TestNamesOutliveTheSupervisor(t *testing.T) {
	n := harness.Start(t, harness.Config{Manifests: map[string]string{"web.yaml": `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.77, ports: [{name: http, port: 80}]}
`}})
	ask := func(name string, kind uint16) (code int, records int) {
		err := netns.Do(island.Path(n.Place.Netns()), func() error {
			udp, err := net.Dial("udp", "10.77.0.1:10053")
			if err != nil {
				return err
			}
			defer udp.Close()
			_ = udp.SetDeadline(time.Now().Add(2 * time.Second))
			c := &dns.Conn{Conn: udp}
			if err := c.WriteMsg(new(dns.Msg).SetQuestion(name, kind)); err != nil {
				return err
			}
			answer, err := c.ReadMsg()
			if err == nil {
				code, records = answer.Rcode, len(answer.Answer)
			}
			return err
		})
		if err != nil {
			return -1, 0
		}
		return code, records
	}
	const web = "web.default.svc.cluster.local."
	n.Until("the Service has its name", 10*time.Second, func() bool { code, n := ask(web, dns.TypeA); return code == dns.RcodeSuccess && n == 1 })
	n.KillAll([]int{n.Pid("supervisor")})
	for name, want := range map[string]int{web: dns.RcodeSuccess, "nobody.default.svc.cluster.local.": dns.RcodeNameError, "example.org.": dns.RcodeNameError} {
		if code, _ := ask(name, dns.TypeA); code != want {
			t.Errorf("%s without the supervisor: %s", name, dns.RcodeToString[code])
		}
	}
	if code, records := ask("_http._tcp."+web, dns.TypeSRV); code != dns.RcodeSuccess || records != 1 {
		t.Errorf("SRV without the supervisor: %s", dns.RcodeToString[code])
	}
	if out, code := n.Worknode("proxy", "dump", "--root", n.Root); code != 0 {
		t.Errorf("dump without the supervisor: %d\n%s", code, out)
	}
	n.Relaunch()
}
