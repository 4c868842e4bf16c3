package node

import (
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"worknode/kernel/netns"
	"worknode/test/harness"
)

// machine makes a network namespace that looks like a machine with one network card, and returns its path.
func machine(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := netns.Create(dir, "", netns.Net); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Unpin(dir); err != nil {
			t.Error(err)
		}
	})
	err := netns.Do(dir+"/net", func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "card"}, PeerName: "switch"}); err != nil {
			return err
		}
		for _, name := range []string{"lo", "switch", "card"} {
			link, err := netlink.LinkByName(name)
			if err == nil {
				err = netlink.LinkSetUp(link)
			}
			if err != nil {
				return err
			}
		}
		card, err := netlink.LinkByName("card")
		if err != nil {
			return err
		}
		address, err := netlink.ParseAddr("10.200.0.2/24")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(card, address); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: card.Attrs().Index, Gw: net.IPv4(10, 200, 0, 1)})
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir + "/net"
}

// Without --isolated a node uses the machine's own network; what it adds there goes with it.
func TestNodeOnTheMachinesNetwork(t *testing.T) {
	at := machine(t)
	network := func() string {
		links, errs, code := harness.Command(t, "nsenter", "--net="+at, "ip", "-o", "link")
		tables, errs2, code2 := harness.Command(t, "nsenter", "--net="+at, "nft", "list", "tables")
		if code != 0 || code2 != 0 {
			t.Fatal(errs, errs2)
		}
		return links + tables
	}
	before := network()
	n := start(t, harness.Config{Inside: at, Manifests: map[string]string{"a.yaml": daily}})
	n.Until("the pod to be ready", 20*time.Second, func() bool {
		out, _ := n.Worknode("ps")
		return hasLine(out, []string{"daily", "1/1", "Running"})
	})
	has(t, kubectl(t, n, "get", "nodes", "-o", "wide"), "10.200.0.2", "Ready")
	n.Until("the Service to answer", 5*time.Second, func() bool {
		out, _ := try(t, n, "daily", "/app ask http://daily.default/") // its short name is its own host name, too
		return out == "daily"
	})
	if now := network(); now == before {
		t.Error("the node added nothing to the machine's network, so this test sees nothing")
	}
	n.Stop()
	if after := network(); after != before {
		t.Errorf("the machine's network before:\n%s\nafter:\n%s", before, after)
	}
}
