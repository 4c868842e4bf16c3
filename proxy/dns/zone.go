package dns

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"worknode/kube"
	"worknode/task"
)

// Zone is what is known of Services, trimmed to what names need. Safe for concurrent use.
type Zone struct {
	name string // lower case, with the dot at the end: cluster.local.

	mu         sync.RWMutex
	missing    int // kinds of objects that are not complete yet
	changed    time.Time
	namespaces map[string]bool
	services   map[key]*service
	slices     map[key]map[string]*slice // by Service, then by name
	serves     map[key]string            // slice → its Service's name
	reverse    map[netip.Addr][]key      // Services that have an address, or an endpoint with a name and that address
	indexed    map[key][]netip.Addr      // the same, the other way round
}

type key struct{ namespace, name string }

type service struct {
	ips      []netip.Addr
	headless bool
	external string // ExternalName
	ports    []port
	unready  bool // publishNotReadyAddresses
}

type port struct {
	name, proto string // lower case
	number      uint16
}

type slice struct {
	endpoints []endpoint
	ports     []port
}

type endpoint struct {
	addr  netip.Addr
	host  string // below the Service
	named bool   // the endpoint has this hostname; otherwise it is made of the address
	ready bool
}

// NewZone returns a zone of nothing, for a domain such as cluster.local. It is complete once it has heard of each kind of
// objects that there are.
func NewZone(domain string) *Zone {
	return &Zone{name: strings.ToLower(strings.Trim(domain, ".")) + ".", missing: 3, changed: time.Now(), namespaces: map[string]bool{},
		services: map[key]*service{}, slices: map[key]map[string]*slice{}, serves: map[key]string{}, reverse: map[netip.Addr][]key{}, indexed: map[key][]netip.Addr{}}
}

// Follow keeps the zone in step with the API until ctx ends. While the API is away the zone stays as it was.
func (z *Zone) Follow(ctx context.Context, client *kube.Client) {
	tasks := task.New(ctx)
	for _, r := range []kube.Resource{kube.Namespaces, kube.Services, kube.EndpointSlices} {
		tasks.Go("names of "+r.Name, func(ctx context.Context) { kube.Follow(ctx, client, r, kube.Where{}, z.Take) })
	}
	tasks.Wait()
}

// Take takes one change.
func (z *Zone) Take(d kube.Delta) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.changed = time.Now()
	if d.Op == kube.Synced {
		z.missing--
		return
	}
	gone := d.Op == kube.Delete
	switch o := d.Object.(type) {
	case *corev1.Namespace:
		if z.namespaces[o.Name] = true; gone {
			delete(z.namespaces, o.Name)
		}
	case *corev1.Service:
		k := key{o.Namespace, o.Name}
		if z.services[k] = trim(o); gone {
			delete(z.services, k)
		}
		z.index(k)
	case *discoveryv1.EndpointSlice:
		z.takeSlice(o, gone)
	}
}

func (z *Zone) takeSlice(o *discoveryv1.EndpointSlice, gone bool) {
	name := key{o.Namespace, o.Name}
	if was, had := z.serves[name]; had { // of a deleted slice we may be told nothing but its name; others may have moved
		of := key{o.Namespace, was}
		delete(z.serves, name)
		if delete(z.slices[of], o.Name); len(z.slices[of]) == 0 {
			delete(z.slices, of)
		}
		z.index(of)
	}
	of := key{o.Namespace, strings.Clone(o.Labels[discoveryv1.LabelServiceName])}
	if gone || of.name == "" {
		return
	}
	z.serves[name] = of.name
	if z.slices[of] == nil {
		z.slices[of] = map[string]*slice{}
	}
	z.slices[of][o.Name] = trimSlice(o)
	z.index(of)
}

// index brings the addresses of one Service up to date.
func (z *Zone) index(k key) {
	for _, a := range z.indexed[k] {
		kept := slices.DeleteFunc(z.reverse[a], func(one key) bool { return one == k })
		if z.reverse[a] = kept; len(kept) == 0 {
			delete(z.reverse, a)
		}
	}
	delete(z.indexed, k)
	s := z.services[k]
	if s == nil {
		return
	}
	all := slices.Clone(s.ips)
	z.endpoints(k, func(e *endpoint, _ *slice) {
		if e.named && !slices.Contains(all, e.addr) {
			all = append(all, e.addr)
		}
	})
	for _, a := range all {
		z.reverse[a] = append(z.reverse[a], k)
	}
	if len(all) > 0 {
		z.indexed[k] = all
	}
}

// endpoints visits those of a headless Service that a client may use.
func (z *Zone) endpoints(k key, visit func(*endpoint, *slice)) {
	s := z.services[k]
	if s == nil || !s.headless {
		return
	}
	for _, one := range z.slices[k] {
		for i := range one.endpoints {
			if e := &one.endpoints[i]; e.ready || s.unready {
				visit(e, one)
			}
		}
	}
}

func trim(o *corev1.Service) *service {
	s := &service{headless: o.Spec.ClusterIP == corev1.ClusterIPNone, unready: o.Spec.PublishNotReadyAddresses}
	if o.Spec.Type == corev1.ServiceTypeExternalName {
		return &service{external: strings.ToLower(strings.TrimSuffix(o.Spec.ExternalName, ".")) + "."}
	}
	for _, text := range append([]string{o.Spec.ClusterIP}, o.Spec.ClusterIPs...) {
		if a, err := netip.ParseAddr(text); err == nil && !slices.Contains(s.ips, a) {
			s.ips = append(s.ips, a)
		}
	}
	for _, p := range o.Spec.Ports {
		s.ports = appendPort(s.ports, p.Name, p.Protocol, p.Port)
	}
	return s
}

func trimSlice(o *discoveryv1.EndpointSlice) *slice {
	s := &slice{}
	for _, p := range o.Ports {
		if p.Name != nil && p.Port != nil {
			proto := corev1.ProtocolTCP
			if p.Protocol != nil {
				proto = *p.Protocol
			}
			s.ports = appendPort(s.ports, *p.Name, proto, *p.Port)
		}
	}
	for _, e := range o.Endpoints {
		if len(e.Addresses) == 0 {
			continue
		}
		a, err := netip.ParseAddr(e.Addresses[0])
		if err != nil {
			continue
		}
		one := endpoint{addr: a, host: dashed(a), ready: e.Conditions.Ready == nil || *e.Conditions.Ready}
		if e.Hostname != nil && *e.Hostname != "" {
			one.host, one.named = strings.ToLower(*e.Hostname), true
		}
		s.endpoints = append(s.endpoints, one)
	}
	return s
}

// appendPort takes ports that have a name: others have no record.
func appendPort(all []port, name string, proto corev1.Protocol, number int32) []port {
	if name == "" || number <= 0 || number > 65535 {
		return all
	}
	return append(all, port{strings.ToLower(strings.Clone(name)), strings.ToLower(string(proto)), uint16(number)})
}

// dashed is the name that an address makes: 10-1-2-3. A zero before and after keeps an IPv6 one a name of letters, digits
// and inner dashes.
func dashed(a netip.Addr) string {
	text := strings.NewReplacer(".", "-", ":", "-").Replace(a.String())
	if strings.HasPrefix(text, "-") {
		text = "0" + text
	}
	if strings.HasSuffix(text, "-") {
		text += "0"
	}
	return text
}
