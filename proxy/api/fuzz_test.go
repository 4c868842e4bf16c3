package api

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"worknode/kube"
	"worknode/proxy/plan"
	"worknode/proxy/state"
)

const seedService = `{"metadata":{"namespace":"ns","name":"web"},"spec":{"type":"LoadBalancer","clusterIP":"10.96.0.1","clusterIPs":["10.96.0.1","fd00::1"],
"externalIPs":["1.2.3.4","010.0.0.1"],"loadBalancerSourceRanges":[" 10.0.0.0/8","10.1.0.0/16","fd01::/64"],"sessionAffinity":"ClientIP","externalTrafficPolicy":"Local",
"healthCheckNodePort":32000,"internalTrafficPolicy":"Local","ports":[{"name":"http","port":80,"nodePort":30080},{"name":"dns","port":53,"protocol":"UDP"}]},
"status":{"loadBalancer":{"ingress":[{"ip":"1.2.3.4","ipMode":"VIP"},{"ip":"1.2.3.5","ipMode":"Proxy"},{"hostname":"x"}]}}}`

const seedSlice = `{"metadata":{"namespace":"ns","name":"web-1","labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv4",
"ports":[{"name":"http","port":8080,"protocol":"TCP"},{"name":"dns","port":0,"protocol":"UDP"},{"name":"dns","port":5353,"protocol":"UDP"}],
"endpoints":[{"addresses":["10.0.0.1"],"nodeName":"n","conditions":{"ready":true},"hints":{"forZones":[{"name":"a"}],"forNodes":[{"name":"n"}]}},
{"addresses":["127.0.0.1"]},{"addresses":["fd00::2"]},{"addresses":[]},{"addresses":["10.0.0.1"],"conditions":{"terminating":true}}]}`

// Whatever a Service and a slice say, what reaches the dataplane is whole: of its family, with ports, without addresses
// that mean another machine everywhere, each element once, and no range inside another. And taking it away takes all away.
func FuzzObjectsToModel(f *testing.F) {
	f.Add(seedService, seedSlice)
	f.Add(seedService, `{"metadata":{"namespace":"ns","name":"x","labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv6","ports":[{"name":"","port":70000}],"endpoints":[{"addresses":["::ffff:10.0.0.1"]},{"addresses":["fe80::1%eth0"]}]}`)
	f.Add(`{"metadata":{"name":"web"},"spec":{"clusterIP":"::ffff:10.0.0.1","ports":[{"port":-1},{"port":80,"protocol":"ICMP"},{"port":80},{"port":80}]}}`, `{}`)
	f.Fuzz(func(t *testing.T, serviceJSON, sliceJSON string) {
		var service corev1.Service
		var slice discoveryv1.EndpointSlice
		if json.Unmarshal([]byte(serviceJSON), &service) != nil || json.Unmarshal([]byte(sliceJSON), &slice) != nil {
			t.Skip()
		}
		store := state.NewStore()
		var name state.Name
		if e, ok := Translate(kube.Delta{Op: kube.Put, Object: &service}, "n", time.Time{}); ok && e.PutService != nil {
			name = e.PutService.Name
			store.PutService(e.PutService)
		}
		if e, ok := Translate(kube.Delta{Op: kube.Put, Object: &slice}, "n", time.Time{}); ok && e.PutSlice != nil {
			store.PutSlice(e.PutSlice)
		}
		svc, slices := store.Service(name)
		for _, fam := range []state.Family{state.V4, state.V6} {
			ports := plan.Compile(plan.Input{Service: svc, Slices: slices, Owns: func(f state.Front) bool { return store.Owns(name, f) }},
				fam, plan.Here{Node: "n", Zone: "a", IPs: []netip.Addr{netip.MustParseAddr("10.1.2.3")}})
			whole(t, fam, ports)
			model, want := plan.NewModel(), plan.Want{Rules: plan.Rules{Family: fam}}
			for _, change := range [][]*plan.Port{nil, ports, nil} {
				d := model.Diff([]plan.Changed{{Service: name, Ports: change}}, want)
				seen := map[plan.Key]bool{}
				for _, list := range [][]plan.Elem{d.Add, d.Replace, d.Del} {
					for _, e := range list {
						if seen[e.Key] {
							t.Fatalf("%v twice in one transaction", e)
						}
						seen[e.Key] = true
					}
				}
				model.Commit(&d)
			}
			if left := model.Elems(); len(left) > 0 {
				t.Fatalf("left behind: %v", left)
			}
		}
		store.DeleteService(name)
		if contested := store.Contested(); len(contested) > 0 {
			t.Fatalf("left behind: %v", contested)
		}
	})
}

func whole(t *testing.T, fam state.Family, ports []*plan.Port) {
	t.Helper()
	address := func(what string, a netip.Addr) {
		if state.Of(a) != fam || a.Is4In6() || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.Zone() != "" {
			t.Fatalf("%s %v in family %d", what, a, fam)
		}
	}
	for _, p := range ports {
		if p.Port == 0 || p.Sticky < 0 {
			t.Fatalf("port %+v", p)
		}
		if p.ClusterIP.IsValid() {
			address("ClusterIP", p.ClusterIP)
		}
		for _, a := range p.External {
			address("external address", a)
		}
		for _, list := range [][]netip.AddrPort{p.All, p.Local, p.Hairpin, p.Serving} {
			for i, to := range list {
				if address("endpoint", to.Addr()); to.Port() == 0 || i > 0 && list[i-1].Compare(to) >= 0 {
					t.Fatalf("endpoints %v", list)
				}
			}
		}
		for i, r := range p.Allow {
			for _, o := range p.Allow[:i] {
				if r.Overlaps(o) || state.Of(r.Addr()) != fam {
					t.Fatalf("ranges %v", p.Allow)
				}
			}
		}
	}
}
