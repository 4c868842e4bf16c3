package api

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"worknode/kube"
)

func TestOnlyServicesWithAnAddressAreServed(t *testing.T) {
	make := func(change func(*corev1.Service)) *corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"}, Spec: corev1.ServiceSpec{
			ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1", "fd00::1"}, Type: corev1.ServiceTypeNodePort,
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, NodePort: 30080}, {Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}}}}
		change(s)
		return s
	}
	for what, c := range map[string]struct {
		change func(*corev1.Service)
		served bool
	}{
		"plain":           {func(*corev1.Service) {}, true},
		"headless":        {func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"} }, false},
		"ExternalName":    {func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName }, false},
		"no address":      {func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "", nil }, false},
		"only clusterIP":  {func(s *corev1.Service) { s.Spec.ClusterIPs = nil }, true},
		"another proxy's": {func(s *corev1.Service) { s.Labels = map[string]string{labelProxyName: "x"} }, false},
	} {
		if got, _ := Service(make(c.change)); (got != nil) != c.served {
			t.Errorf("%s: served %v, want %v", what, got != nil, c.served)
		}
	}
	got, trouble := Service(make(func(s *corev1.Service) { s.Spec.Ports = append(s.Spec.Ports, s.Spec.Ports[0]) }))
	if trouble.Reason != "InvalidService" || len(got.Ports) != 2 || got.Ports[0].NodePort != 30080 || len(got.ClusterIPs) != 2 {
		t.Errorf("got %+v", got)
	}
	if got, _ := Service(make(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP })); got.Ports[0].NodePort != 0 {
		t.Error("a node port that a ClusterIP Service once had is served")
	}
	// A Service that stops being served is gone.
	e, ok := Translate(kube.Delta{Op: kube.Put, Object: make(func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"None"} })}, "n", time.Now())
	if !ok || e.DeleteService == nil || e.DeleteService.Name != "web" {
		t.Errorf("got %+v", e)
	}
}

func TestSliceDefaultsAndTrimming(t *testing.T) {
	no, yes, name, port := false, true, "", int32(80)
	node := "n"
	in := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4,
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		Ports:      []discoveryv1.EndpointPort{{Name: &name, Port: &port}, {Name: &name}, {Port: &port}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.0.0.1"}, NodeName: &node},
			{Addresses: []string{"10.0.0.2"}, Conditions: discoveryv1.EndpointConditions{Ready: &no, Serving: &no, Terminating: &yes}},
			{Addresses: []string{"fd00::2"}}, {},
		}}
	got, trouble := Slice(in, "n")
	if len(got.Ports) != 1 || len(got.Endpoints) != 2 || !strings.Contains(trouble.Message, "fd00::2") {
		t.Fatalf("got %+v, %+v", got, trouble)
	}
	if e := got.Endpoints[0]; !e.Ready || !e.Serving || e.Terminating || !e.Local {
		t.Errorf("defaults: %+v", e)
	}
	if e := got.Endpoints[1]; e.Ready || e.Serving || !e.Terminating || e.Local {
		t.Errorf("all set: %+v", e)
	}
	in.AddressType = discoveryv1.AddressTypeFQDN
	if got, _ := Slice(in, "n"); got != nil {
		t.Error("names are no endpoints")
	}
	in.AddressType, in.Labels = discoveryv1.AddressTypeIPv4, nil
	if got, _ := Slice(in, "n"); got != nil {
		t.Error("a slice of no Service")
	}
}
