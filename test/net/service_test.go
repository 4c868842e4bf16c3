package net

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"worknode/kube"
)

const (
	tcp = corev1.ProtocolTCP
	udp = corev1.ProtocolUDP
)

func TestClusterIPFromPodNodeAndOutside(t *testing.T) {
	n := newNode(t, options{})
	n.serve("back", 8080)
	n.start()
	n.service("web", "10.96.0.1", port{tcp, 80, 0})
	n.endpoints("web", 8080, up("10.1.128.1", "10.1.128.2", "10.1.128.3")...)
	all := []string{"10.1.128.1", "10.1.128.2", "10.1.128.3"}
	if c := n.reaches("pod", "10.96.0.1:80", all...); !c[podIP] || len(c) != 1 {
		t.Errorf("a pod's connections come from %v, want its own address", c)
	}
	if c := n.reaches("node", "10.96.0.1:80", all...); !c["10.1.1.1"] || len(c) != 1 {
		t.Errorf("the node's connections come from %v, want the address that faces the endpoint", c)
	}
	// A client outside the pod network cannot be answered directly: it is masqueraded.
	if c := n.reaches("ext", "10.96.0.1:80", all...); !c["10.1.1.1"] || len(c) != 1 {
		t.Errorf("outside connections come from %v, want the node", c)
	}
	n.refused("pod", "10.96.0.1:81") // a port that the Service does not have
	n.refused("node", "10.96.0.1:81")
}

func TestServiceWithoutEndpointsIsRefusedAtOnce(t *testing.T) {
	n := newNode(t, options{})
	n.serve("back", 8080)
	n.start()
	n.service("web", "10.96.0.1", port{tcp, 80, 30080})
	for _, c := range []struct{ ns, to string }{{"pod", "10.96.0.1:80"}, {"node", "10.96.0.1:80"}, {"ext", nodeIP + ":30080"}, {"node", nodeIP + ":30080"}} {
		n.refused(c.ns, c.to)
	}
	n.endpoints("web", 8080, up("10.1.128.1")...)
	n.reaches("pod", "10.96.0.1:80", "10.1.128.1")
	n.endpoints("web", 8080)
	n.refused("pod", "10.96.0.1:80")
	n.refused("ext", nodeIP+":30080")
}

func TestNodePortMasqueradesAndFollowsAddresses(t *testing.T) {
	n := newNode(t, options{NodePortAddresses: []string{"192.0.2.0/24"}})
	n.serve("back", 8080)
	n.start()
	n.service("web", "10.96.0.1", port{tcp, 80, 30080})
	n.endpoints("web", 8080, up("10.1.128.1", "10.1.128.2")...)
	for _, ns := range []string{"ext", "pod", "node"} {
		if c := n.reaches(ns, nodeIP+":30080", "10.1.128.1", "10.1.128.2"); !c["10.1.1.1"] || len(c) != 1 {
			t.Errorf("from %s: the endpoint sees %v, want the node", ns, c)
		}
	}
	n.refused("pod", "10.1.0.1:30080") // an address of the node, but not one for node ports
	n.ip("-n", n.prefix+"node", "addr", "add", "192.0.2.9/24", "dev", "to-ext")
	n.reaches("ext", "192.0.2.9:30080", "10.1.128.1", "10.1.128.2")
	n.ip("-n", n.prefix+"node", "addr", "add", "192.0.2.1/32", "dev", "lo") // keep nodeIP alive whatever is primary
	n.ip("-n", n.prefix+"node", "addr", "del", "192.0.2.9/24", "dev", "to-ext")
	eventually(t, "a removed address should leave the table", func() error {
		if strings.Contains(n.list(), "192.0.2.9") {
			return fmt.Errorf("it is still there")
		}
		return nil
	})
}

func TestPrimaryNodePortAddressComesFromTheNode(t *testing.T) {
	n := newNode(t, options{})
	n.serve("back", 8080)
	n.start()
	n.service("web", "10.96.0.1", port{tcp, 80, 30080})
	n.endpoints("web", 8080, up("10.1.128.1")...)
	n.reaches("ext", nodeIP+":30080", "10.1.128.1") // of the default route, as there is no Node yet
	n.send(line{Op: kube.Put, Node: &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node"}, Status: corev1.NodeStatus{
		Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.1.0.1"}}}}})
	n.reaches("pod", "10.1.0.1:30080", "10.1.128.1")
	n.refused("ext", nodeIP+":30080")
}

func TestNotReadyEndpointGetsNothing(t *testing.T) {
	n := newNode(t, options{})
	n.serve("back", 8080)
	no := false
	n.start()
	n.service("web", "10.96.0.1", port{tcp, 80, 0})
	n.endpoints("web", 8080, endpoint{addr: "10.1.128.1"}, endpoint{addr: "10.1.128.2", ready: &no})
	n.reaches("pod", "10.96.0.1:80", "10.1.128.1")
	n.endpoints("web", 8080, up("10.1.128.1", "10.1.128.2")...)
	n.reaches("pod", "10.96.0.1:80", "10.1.128.1", "10.1.128.2")
	n.endpoints("web", 8080, endpoint{addr: "10.1.128.1", ready: &no}, endpoint{addr: "10.1.128.2"})
	n.reaches("pod", "10.96.0.1:80", "10.1.128.2")
}

func TestPodReachesItselfThroughItsService(t *testing.T) {
	n := newNode(t, options{})
	n.serve("pod", 8080)
	n.start()
	n.service("web", "10.96.0.1", port{tcp, 80, 0})
	n.endpoints("web", 8080, endpoint{addr: podIP, local: true})
	if c := n.reaches("pod", "10.96.0.1:80", podIP); c[podIP] {
		t.Errorf("the pod sees its own address as client: the answer would not pass the node")
	}
}

func TestUDPFlowLeavesRemovedEndpoint(t *testing.T) {
	n := newNode(t, options{})
	n.serveUDP("back", "10.1.128.1:53")
	n.serveUDP("back", "10.1.128.2:53")
	n.start()
	n.service("dns", "10.96.0.10", port{udp, 53, 30053})
	n.endpoints("dns", 53, up("10.1.128.1")...)
	for _, to := range []struct{ ns, addr string }{{"pod", "10.96.0.10:53"}, {"ext", nodeIP + ":30053"}} {
		n.endpoints("dns", 53, up("10.1.128.1")...)
		c, err := n.dial(to.ns, "udp4", to.addr, time.Second) // one socket: one flow
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		answers := func(want string) {
			t.Helper()
			eventually(t, "the flow to "+to.addr+" should be answered by "+want, func() error {
				c.SetDeadline(time.Now().Add(200 * time.Millisecond))
				c.Write([]byte("?"))
				buf := make([]byte, 64)
				k, err := c.Read(buf)
				if err == nil && string(buf[:k]) != want {
					err = fmt.Errorf("%s answers", buf[:k])
				}
				return err
			})
		}
		answers("10.1.128.1:53")
		n.endpoints("dns", 53, up("10.1.128.2")...)
		answers("10.1.128.2:53")
	}
}

func TestSamePortOnTwoProtocols(t *testing.T) {
	n := newNode(t, options{})
	n.serve("back", 53)
	n.serveUDP("back", "10.1.128.1:53")
	n.start()
	n.service("dns", "10.96.0.10", port{tcp, 53, 0}, port{udp, 53, 0})
	n.endpoints("dns", 53, up("10.1.128.1")...)
	n.reaches("pod", "10.96.0.10:53", "10.1.128.1")
	c, err := n.dial("pod", "udp4", "10.96.0.10:53", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte("?"))
	c.SetDeadline(time.Now().Add(wait))
	buf := make([]byte, 64)
	if k, err := c.Read(buf); err != nil || string(buf[:k]) != "10.1.128.1:53" {
		t.Fatalf("UDP: %q, %v", buf[:k], err)
	}
}

func TestHealthAndMetrics(t *testing.T) {
	n := newNode(t, options{HealthzAddr: "127.0.0.1:10256", MetricsAddr: "127.0.0.1:10249"})
	n.start()
	n.send(line{Op: kube.Put, Node: &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node"}}}) // without it, nothing should be sent here
	n.service("web", "10.96.0.1", port{tcp, 80, 0})
	get := func(url string) (code int, body string) {
		eventually(t, url, func() error {
			c := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true,
				Dial: func(network, addr string) (net.Conn, error) { return n.dial("node", network, addr, time.Second) }}}
			r, err := c.Get(url)
			if err != nil {
				return err
			}
			defer r.Body.Close()
			buf := make([]byte, 64<<10)
			k := 0
			for {
				m, err := r.Body.Read(buf[k:])
				if k += m; err != nil {
					break
				}
			}
			code, body = r.StatusCode, string(buf[:k])
			if code != 200 {
				return fmt.Errorf("%d %s", code, body)
			}
			return nil
		})
		return code, body
	}
	if _, body := get("http://127.0.0.1:10256/healthz"); !strings.Contains(body, `"nodeEligible":true`) {
		t.Errorf("healthz: %s", body)
	}
	eventually(t, "metrics should count the Service", func() error {
		if _, body := get("http://127.0.0.1:10249/metrics"); !strings.Contains(body, "\nworknode_proxy_services 1\n") {
			return fmt.Errorf("%s", body)
		}
		return nil
	})
}
