package translate

import (
	"bytes"
	"strings"

	v1 "k8s.io/api/core/v1"

	"worknode/fault"
)

const (
	maxLabel    = 63 // DNS label and Linux hostname, RFC 1123
	maxHostname = 64 // the kernel's HOST_NAME_MAX
)

// HostName returns a pod's short name and its domain, which is empty without a subdomain.
func HostName(pod *v1.Pod, node Node) (host, domain string) {
	if o := pod.Spec.HostnameOverride; o != nil {
		return *o, ""
	}
	host = pod.Spec.Hostname
	if host == "" {
		host = pod.Name
		if len(host) > maxLabel {
			host = strings.TrimRight(host[:maxLabel], "-.")
		}
	}
	if pod.Spec.Subdomain != "" {
		domain = pod.Spec.Subdomain + "." + pod.Namespace + ".svc." + node.ClusterDomain
	}
	return host, domain
}

// kernelName is what `hostname` prints inside the pod.
func kernelName(pod *v1.Pod, node Node) (string, error) {
	host, domain := HostName(pod, node)
	if domain == "" || pod.Spec.SetHostnameAsFQDN == nil || !*pod.Spec.SetHostnameAsFQDN {
		return host, nil
	}
	fqdn := host + "." + domain
	if len(fqdn) > maxHostname {
		return "", fault.Hint(
			fault.New(fault.Invalid, "pod %s: setHostnameAsFQDN gives %q, which has %d characters", podText(pod), fqdn, len(fqdn)),
			"the kernel allows %d: shorten the pod's name or subdomain", maxHostname)
	}
	return fqdn, nil
}

// HostsFile returns the content of a pod's /etc/hosts. ips are the pod's own; pods on the host's network get the node's
// file instead of them. Aliases of the spec follow at the end.
func HostsFile(pod *v1.Pod, ips []string, node Node) []byte {
	var b bytes.Buffer
	if pod.Spec.HostNetwork {
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		b.Write(node.HostHosts)
		if n := len(node.HostHosts); n > 0 && node.HostHosts[n-1] != '\n' {
			b.WriteByte('\n')
		}
	} else {
		b.WriteString("# Kubernetes-managed hosts file.\n" +
			"127.0.0.1\tlocalhost\n" +
			"::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::0\tip6-localnet\n" +
			"fe00::0\tip6-mcastprefix\n" +
			"fe00::1\tip6-allnodes\n" +
			"fe00::2\tip6-allrouters\n")
		host, domain := HostName(pod, node)
		for _, ip := range ips {
			if domain != "" {
				b.WriteString(ip + "\t" + host + "." + domain + "\t" + host + "\n")
			} else {
				b.WriteString(ip + "\t" + host + "\n")
			}
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, a := range pod.Spec.HostAliases {
			b.WriteString(a.IP + "\t" + strings.Join(a.Hostnames, "\t") + "\n")
		}
	}
	return b.Bytes()
}
