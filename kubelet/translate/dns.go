package translate

import (
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// DNS is the content of a resolv.conf.
type DNS struct {
	Servers, Searches, Options []string
}

// What resolvers and the API promise at most. Source: Kubernetes docs, DNS for Services and Pods.
const (
	maxServers     = 3
	maxSearches    = 32
	maxSearchChars = 2048
)

// ParseResolvConf reads a resolv.conf(5). Unknown lines are ignored; the last search or options line wins.
func ParseResolvConf(text []byte) DNS {
	var d DNS
	for line := range strings.Lines(string(text)) {
		if i := strings.IndexAny(line, "#;"); i >= 0 {
			line = line[:i]
		}
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		switch words[0] {
		case "nameserver":
			if len(words) > 1 {
				d.Servers = append(d.Servers, words[1])
			}
		case "search", "domain":
			d.Searches = nil
			for _, s := range words[1:] {
				if s != "." {
					s = strings.TrimSuffix(s, ".")
				}
				d.Searches = append(d.Searches, s)
			}
		case "options":
			d.Options = slices.Clone(words[1:])
		}
	}
	return d
}

// PodDNS returns the resolver settings of a pod. missing is true if the pod asked for the cluster's DNS and the node has
// none, so that it got the node's own (event MissingClusterDNS).
// Source: Kubernetes docs, DNS for Services and Pods: policies and dnsConfig.
func PodDNS(pod *v1.Pod, node Node) (d DNS, missing bool) {
	switch pod.Spec.DNSPolicy {
	case v1.DNSNone:
	case v1.DNSDefault:
		d = node.HostDNS
	default:
		onHost := pod.Spec.HostNetwork && pod.Spec.DNSPolicy != v1.DNSClusterFirstWithHostNet
		switch {
		case onHost:
			d = node.HostDNS
		case len(node.ClusterDNS) == 0:
			d, missing = node.HostDNS, true
		default:
			d = clusterDNS(pod.Namespace, node)
		}
	}
	if c := pod.Spec.DNSConfig; c != nil {
		d.Servers = unique(d.Servers, c.Nameservers)
		d.Searches = unique(d.Searches, c.Searches)
		d.Options = mergeOptions(d.Options, c.Options)
	}
	d.Servers = d.Servers[:min(len(d.Servers), maxServers)]
	d.Searches = fitSearches(d.Searches)
	return d, missing
}

func clusterDNS(ns string, node Node) DNS {
	d := DNS{Servers: node.ClusterDNS, Searches: node.HostDNS.Searches, Options: []string{"ndots:5"}}
	if domain := node.ClusterDomain; domain != "" {
		d.Searches = unique([]string{ns + ".svc." + domain, "svc." + domain, domain}, node.HostDNS.Searches)
	}
	return d
}

// unique joins two lists and keeps the first of equal words. It never writes into its arguments.
func unique(a, b []string) []string {
	out := make([]string, 0, len(a)+len(b))
	for _, list := range [][]string{a, b} {
		for _, s := range list {
			if !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
	}
	return out
}

// mergeOptions puts the pod's options over those of its policy; of two with one name the pod's wins.
func mergeOptions(base []string, own []v1.PodDNSConfigOption) []string {
	out := slices.Clone(base)
	for _, o := range own {
		word := o.Name
		if o.Value != nil && *o.Value != "" {
			word += ":" + *o.Value
		}
		out = slices.DeleteFunc(out, func(have string) bool {
			name, _, _ := strings.Cut(have, ":")
			return name == o.Name
		})
		out = append(out, word)
	}
	return out
}

func fitSearches(in []string) []string {
	in = in[:min(len(in), maxSearches)]
	for len(strings.Join(in, " ")) > maxSearchChars {
		in = in[:len(in)-1]
	}
	return in
}

func (d DNS) cri() *cri.DNSConfig {
	return &cri.DNSConfig{Servers: d.Servers, Searches: d.Searches, Options: d.Options}
}
