package main

import (
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"worknode/test/apiserver"
	"worknode/test/bed"
)

const (
	perService = 3 // endpoints
	target     = 80
	added      = 1_000_000
)

// cluster is an API with Services, a bed whose endpoints answer, and a contestant that is to bring them together.
type cluster struct {
	bed  *bed.Bed
	api  *apiserver.Server
	dir  string
	next int // of endpoints: no two slices have the same ones for a long time
	*process
}

// current is the one that exists.
var current atomic.Pointer[cluster]

func newCluster(count int) (*cluster, error) {
	b, err := bed.New()
	if err != nil {
		return nil, err
	}
	c := &cluster{bed: b, api: apiserver.New()}
	current.Store(c)
	if err := c.fill(count); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *cluster) fill(count int) (err error) {
	if c.dir, err = os.MkdirTemp("", "wnbenchproxy"); err != nil {
		return err
	}
	if err := os.WriteFile(c.dir+"/kubeconfig", []byte(apiserver.Kubeconfig("http://127.0.0.1:6443")), 0o600); err != nil {
		return err
	}
	l, err := c.bed.Listen("node", "127.0.0.1:6443")
	if err != nil {
		return err
	}
	go c.api.Serve(l)
	for _, ns := range []string{"back", "peer"} {
		if err := c.bed.Serve(ns, "", target); err != nil {
			return err
		}
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: bed.NodeName}}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: bed.NodeIP}}
	cidr := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{bed.Services}}}
	all := []runtime.Object{node, cidr}
	for i := range count {
		all = append(all, service(i), c.slice(i))
	}
	c.api.Put(all...)
	return nil
}

func (c *cluster) close() {
	if c.process != nil {
		c.end()
	}
	c.bed.Close()
	_ = os.RemoveAll(c.dir)
}

// vip is the address of a Service. Those that are added later, from i = added on, are outside the ServiceCIDR: a connection
// that comes too early is refused there, not dropped, so that it can be repeated at once.
func vip(i int) netip.AddrPort {
	if i >= added {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, 99, byte(1 + (i-added)%250)}), 80)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 30, byte((i + 10) >> 8), byte(i + 10)}), 80)
}

func name(i int) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: fmt.Sprintf("ns-%d", i%50), Name: fmt.Sprintf("service-%d", i)}
}

func service(i int) *corev1.Service {
	s := &corev1.Service{ObjectMeta: name(i)}
	s.Labels = map[string]string{"app.kubernetes.io/name": s.Name, "app.kubernetes.io/managed-by": "bench"}
	policy := corev1.IPFamilyPolicySingleStack
	s.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: vip(i).Addr().String(), ClusterIPs: []string{vip(i).Addr().String()},
		IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, IPFamilyPolicy: &policy, Selector: map[string]string{"app.kubernetes.io/name": s.Name},
		SessionAffinity: corev1.ServiceAffinityNone, Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}}}
	return s
}

// slice makes a slice with endpoints that the Service has not had of late.
func (c *cluster) slice(i int) *discoveryv1.EndpointSlice {
	m := name(i)
	m.Labels = map[string]string{discoveryv1.LabelServiceName: m.Name, discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io"}
	m.Annotations = map[string]string{"endpoints.kubernetes.io/last-change-trigger-time": time.Now().UTC().Format(time.RFC3339Nano)}
	m.Name += "-x7f2k"
	port, proto, portName, ready := int32(target), corev1.ProtocolTCP, "http", true
	s := &discoveryv1.EndpointSlice{ObjectMeta: m, AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &proto}}}
	for range perService {
		node := "other-node"
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{c.endpoint().String()}, NodeName: &node,
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready},
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: m.Namespace, Name: fmt.Sprintf("%s-%d", m.Name, c.next)}})
	}
	return s
}

// endpoint is the next of 750 addresses that answer.
func (c *cluster) endpoint() netip.Addr {
	nets := [][4]byte{{10, 180, 0, 0}, {10, 180, 1, 0}, {10, 180, 2, 0}}
	a := nets[c.next%3]
	a[3] = byte(1 + c.next/3%250)
	c.next++
	return netip.AddrFrom4(a)
}
