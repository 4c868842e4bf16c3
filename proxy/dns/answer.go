package dns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// schema is the version of the specification that we serve.
const schema = "1.1.0"

// ttl is short: a Service that is made anew may get another address.
const ttl = 5

// Service whose address is that of the zone's name server.
var nameServer = key{"kube-system", "kube-dns"}

// ready tells whether every kind of object has been heard of: before that, no name can be denied.
func (z *Zone) ready() bool {
	z.mu.RLock()
	defer z.mu.RUnlock()
	return z.missing <= 0
}

// lookup returns all records of a name in the zone, written in lower case. known is false if there is no such name; a name
// without records exists because there are names below it.
func (z *Zone) lookup(name string) (records []dns.RR, known bool) {
	z.mu.RLock()
	defer z.mu.RUnlock()
	parts := strings.Split(strings.TrimSuffix(strings.TrimSuffix(name, z.name), "."), ".")
	n := len(parts)
	last := parts[n-1]
	switch {
	case n == 1 && last == "":
		return []dns.RR{z.soa(), &dns.NS{Hdr: header(z.name, dns.TypeNS), Ns: z.server()}}, true
	case n == 1 && last == "dns-version":
		return []dns.RR{&dns.TXT{Hdr: header(name, dns.TypeTXT), Txt: []string{schema}}}, true
	case n == 1:
		return nil, last == "svc" || last == "pod" || last == "dns"
	case n == 2 && last == "dns" && parts[0] == "ns":
		if s := z.services[nameServer]; s != nil {
			return addresses(name, s.ips), true
		}
		return nil, true
	case last != "svc" && last != "pod":
		return nil, false
	case n == 2:
		return nil, z.namespaces[parts[0]]
	case last == "pod":
		return z.pod(name, parts)
	}
	k := key{parts[n-2], parts[n-3]}
	s := z.services[k]
	if s == nil {
		return nil, false
	}
	if s.external != "" {
		if n > 3 {
			return nil, false
		}
		return []dns.RR{&dns.CNAME{Hdr: header(name, dns.TypeCNAME), Target: s.external}}, true
	}
	switch n {
	case 3:
		if !s.headless {
			return addresses(name, s.ips), true
		}
		all := z.hosts(k, func(*endpoint) bool { return true })
		return addresses(name, all), len(all) > 0
	case 4:
		if proto, is := strings.CutPrefix(parts[0], "_"); is {
			return nil, len(z.ports(k, func(p port) bool { return p.proto == proto })) > 0
		}
		all := z.hosts(k, func(e *endpoint) bool { return e.host == parts[0] })
		return addresses(name, all), len(all) > 0
	case 5:
		return z.srv(name, k, parts[0], parts[1])
	}
	return nil, false
}

// pod answers A-B-C-D.NAMESPACE.pod, which says nothing but its own address. Source: schema 1.1.0, 2.6.
func (z *Zone) pod(name string, parts []string) ([]dns.RR, bool) {
	if len(parts) != 3 || !z.namespaces[parts[1]] {
		return nil, false
	}
	a, err := netip.ParseAddr(strings.ReplaceAll(parts[0], "-", "."))
	if err != nil {
		a, err = netip.ParseAddr(strings.ReplaceAll(parts[0], "-", ":"))
	}
	if err != nil {
		return nil, false
	}
	return addresses(name, []netip.Addr{a}), true
}

// hosts are the addresses of a headless Service's endpoints that which picks, each once.
func (z *Zone) hosts(k key, which func(*endpoint) bool) (all []netip.Addr) {
	z.endpoints(k, func(e *endpoint, _ *slice) {
		if which(e) && !slices.Contains(all, e.addr) {
			all = append(all, e.addr)
		}
	})
	return all
}

// target is what one SRV record points to.
type target struct {
	host   string // empty: the Service itself
	number uint16
	addr   netip.Addr
}

// ports are the named ports that which picks: of a Service with an address its own, of a headless one those of each
// endpoint.
func (z *Zone) ports(k key, which func(port) bool) (all []target) {
	s := z.services[k]
	if !s.headless {
		for _, p := range s.ports {
			if which(p) {
				all = append(all, target{number: p.number})
			}
		}
		return all
	}
	z.endpoints(k, func(e *endpoint, in *slice) {
		for _, p := range in.ports {
			if which(p) {
				all = append(all, target{e.host, p.number, e.addr})
			}
		}
	})
	return all
}

// srv answers _PORT._PROTOCOL.SERVICE.NAMESPACE.svc.
func (z *Zone) srv(name string, k key, label, protocol string) (records []dns.RR, known bool) {
	want, ok1 := strings.CutPrefix(label, "_")
	proto, ok2 := strings.CutPrefix(protocol, "_")
	if !ok1 || !ok2 {
		return nil, false
	}
	type once struct {
		host   string
		number uint16
	}
	seen := map[once]bool{}
	for _, t := range z.ports(k, func(p port) bool { return p.name == want && p.proto == proto }) {
		if seen[once{t.host, t.number}] { // two addresses of one host, as with two families
			continue
		}
		seen[once{t.host, t.number}] = true
		to := k.name + "." + k.namespace + ".svc." + z.name
		if t.host != "" {
			to = t.host + "." + to
		}
		records = append(records, &dns.SRV{Hdr: header(name, dns.TypeSRV), Weight: 100, Port: t.number, Target: to})
	}
	return records, len(records) > 0
}

// pointers answers for an address: the Services that have it, and the ready endpoints that have it and a hostname.
func (z *Zone) pointers(question string, a netip.Addr) (records []dns.RR) {
	z.mu.RLock()
	defer z.mu.RUnlock()
	for _, k := range z.reverse[a] {
		base := k.name + "." + k.namespace + ".svc." + z.name
		s := z.services[k]
		if slices.Contains(s.ips, a) {
			records = append(records, pointer(question, base))
			continue
		}
		seen := map[string]bool{}
		z.endpoints(k, func(e *endpoint, _ *slice) {
			if e.named && e.addr == a && !seen[e.host] {
				seen[e.host] = true
				records = append(records, pointer(question, e.host+"."+base))
			}
		})
	}
	return records
}

func pointer(question, to string) dns.RR {
	return &dns.PTR{Hdr: header(question, dns.TypePTR), Ptr: to}
}

func (z *Zone) server() string { return "ns.dns." + z.name }

// soa is the zone's own record; it goes with every negative answer and says how long that holds. z.mu is held.
func (z *Zone) soa() *dns.SOA {
	return &dns.SOA{Hdr: header(z.name, dns.TypeSOA), Ns: z.server(), Mbox: "hostmaster." + z.name,
		Serial: uint32(z.changed.Unix()), Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl}
}

func addresses(name string, all []netip.Addr) (records []dns.RR) {
	for _, a := range all {
		if a.Is4() {
			records = append(records, &dns.A{Hdr: header(name, dns.TypeA), A: a.AsSlice()})
		} else {
			records = append(records, &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: a.AsSlice()})
		}
	}
	return records
}

func header(name string, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
}

// addressOf reads a reverse name, 4.3.2.1.in-addr.arpa. or that of ip6.arpa; in lower case.
func addressOf(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		parts := strings.Split(rest, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
		return a, err == nil
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa.")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var text strings.Builder
	for i := 62; i >= 0; i -= 2 {
		text.WriteByte(rest[i])
		if i > 0 && rest[i-1] != '.' {
			return netip.Addr{}, false
		}
		if i%8 == 0 && i > 0 {
			text.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(text.String())
	return a, err == nil && !a.Is4In6()
}
