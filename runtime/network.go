package runtime

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/runtime/cni"
	"worknode/runtime/network"
	"worknode/runtime/state"
	"worknode/step"
)

// Names of networks in a sandbox's record; what connected a sandbox also disconnects it, whatever is configured then.
const (
	onBridge = "bridge:"
	onCNI    = "cni:"
)

// networks carries between the sandboxes and whatever connects them: the built-in bridge if it was asked for, else CNI
// plugins; and the table of host ports, unless a plugin serves them.
type networks struct {
	bridge *network.Bridge // nil: new sandboxes go to CNI
	cni    *cni.Network    // always there: sandboxes of an earlier configuration may have to be disconnected
	ports  *network.Ports
	name   string // of the bridge
}

// openNetworks opens what Options ask for. The configuration of plugins may still be missing: status tells.
func openNetworks(o Options) (n *networks, err error) {
	n = &networks{name: o.Bridge.Bridge}
	defer func() {
		if err != nil {
			n.close(false)
		}
	}()
	plugins := o.CNI
	if n.name != "" {
		if n.bridge, err = network.Open(o.Bridge); err != nil {
			return nil, err
		}
		plugins.ConfDir = "" // the bridge was asked for, so no plugin's configuration counts
	}
	if n.cni, err = cni.Open(plugins); err != nil {
		return nil, err
	}
	table := n.name
	if table == "" { // two runtimes on one machine share no run folder
		sum := sha256.Sum256([]byte(o.Run))
		table = hex.EncodeToString(sum[:4])
	}
	n.ports, err = network.OpenPorts(table, n.bridge == nil)
	return n, err
}

// ready reports what keeps a new sandbox from being connected.
func (n *networks) ready() error {
	if n.bridge != nil {
		return n.bridge.Ready()
	}
	return n.cni.Ready()
}

// connect gives a sandbox its addresses and host ports, and notes in s what did it. netns is its namespace.
// After an error disconnect must follow, with the same s.
func (n *networks) connect(ctx context.Context, s *state.Sandbox, netns string) error {
	var ips []netip.Addr
	if n.bridge != nil {
		s.Network = onBridge + n.name
		r, err := n.bridge.Add(ctx, s.ID, netns)
		if err != nil {
			return err
		}
		step.At("on the bridge")
		ips, s.HostPorts = r.IPs, true
	} else {
		s.Network = onCNI
		r, err := n.cni.Add(ctx, request(s, netns))
		if err != nil {
			return err
		}
		s.Network, ips, s.HostPorts = onCNI+r.Network, r.IPs, !r.Ports
	}
	for _, ip := range ips {
		s.IPs = append(s.IPs, ip.String())
	}
	list, err := mappings(s)
	if err != nil || !s.HostPorts || len(list) == 0 {
		return err
	}
	defer step.At("host ports open")
	return n.ports.Add(s.ID, list)
}

// disconnect takes back addresses and host ports. With force it succeeds whatever the plugins say, and they are asked
// again later. Repeat: safe.
func (n *networks) disconnect(ctx context.Context, s *state.Sandbox, force bool) error {
	err := n.ports.Del(s.ID)
	step.At("host ports closed")
	if err != nil && force {
		slog.Warn("host ports of a removed sandbox stay until the next start", "id", s.ID, "error", err)
		err = nil
	}
	errs := []error{err}
	switch {
	case strings.HasPrefix(s.Network, onCNI):
		err := n.cni.Del(ctx, s.ID)
		if err != nil && force {
			slog.Warn("sandbox goes although its network did not let go, asking again later", "id", s.ID, "error", err)
			n.cni.Later(s.ID)
			err = nil
		}
		errs = append(errs, err)
	case n.bridge != nil: // also records of before there was a choice; the device goes with the namespace in any case
		errs = append(errs, n.bridge.Del(ctx, s.ID, ""))
	}
	return errors.Join(errs...)
}

// reconcile compares what the networks hold with the sandboxes that have addresses.
func (n *networks) reconcile(live []*state.Sandbox) error {
	bridge, plugins, ports := map[string][]netip.Addr{}, map[string]bool{}, map[string][]network.Mapping{}
	for _, s := range live {
		if strings.HasPrefix(s.Network, onCNI) {
			plugins[s.ID] = true
		} else {
			bridge[s.ID] = addresses(s)
		}
		if list, err := mappings(s); err == nil && s.HostPorts && len(list) > 0 {
			ports[s.ID] = list
		}
	}
	if n.bridge != nil {
		if err := n.bridge.Reconcile(bridge); err != nil {
			return err
		}
	}
	if err := n.cni.Reconcile(plugins); err != nil {
		return err
	}
	return n.ports.Reconcile(ports)
}

func (n *networks) setPodCIDR(text string) {
	var out []string
	for c := range strings.SplitSeq(text, ",") {
		if _, err := netip.ParsePrefix(strings.TrimSpace(c)); err == nil {
			out = append(out, strings.TrimSpace(c))
		}
	}
	n.cni.SetPodCIDR(out)
}

// close lets go of all; with remove nothing of ours stays on the machine.
func (n *networks) close(remove bool) {
	if n.ports != nil {
		if err := n.ports.Close(remove); err != nil {
			slog.Warn("host ports stay", "error", err)
		}
	}
	if n.cni != nil {
		n.cni.Close()
	}
	if n.bridge != nil {
		if err := n.bridge.Close(remove); err != nil {
			slog.Warn("pod network stays", "error", err)
		}
	}
}

// request is what plugins are told of a sandbox.
func request(s *state.Sandbox, netns string) cni.Request {
	r := cni.Request{
		Sandbox: s.ID, NetNS: netns, Namespace: s.Meta().GetNamespace(), Name: s.Meta().GetName(), UID: s.Meta().GetUid(),
		Annotations: s.Config.GetAnnotations(), Cgroup: s.CgroupParent,
	}
	if d := s.Config.GetDnsConfig(); d != nil {
		r.DNS = cni.DNS{Servers: d.Servers, Searches: d.Searches, Options: d.Options}
	}
	for _, p := range s.Config.GetPortMappings() {
		if p.GetHostPort() > 0 {
			r.Ports = append(r.Ports, cni.Port{HostPort: p.GetHostPort(), ContainerPort: p.GetContainerPort(),
				Protocol: strings.ToLower(p.GetProtocol().String()), HostIP: p.GetHostIp()})
		}
	}
	return r
}

var protocols = map[cri.Protocol]uint8{cri.Protocol_TCP: unix.IPPROTO_TCP, cri.Protocol_UDP: unix.IPPROTO_UDP, cri.Protocol_SCTP: unix.IPPROTO_SCTP}

// mappings are the host ports that a sandbox asks for, for each family that it has an address of. A hostIP confines one
// to its family, unspecified ones too; none at all means every address of both.
// Errors: Invalid for what no port can be.
func mappings(s *state.Sandbox) ([]network.Mapping, error) {
	var out []network.Mapping
	for _, p := range s.Config.GetPortMappings() {
		if p.GetHostPort() == 0 {
			continue
		}
		bad := fault.New(fault.Invalid, "host port %d to container port %d over %s on %q: ports are 1 to 65535, the host IP an address",
			p.GetHostPort(), p.GetContainerPort(), p.GetProtocol(), p.GetHostIp())
		var host netip.Addr
		if p.GetHostIp() != "" {
			var err error
			if host, err = netip.ParseAddr(p.GetHostIp()); err != nil {
				return nil, bad
			}
		}
		proto, ok := protocols[p.GetProtocol()]
		if !ok || p.GetHostPort() < 0 || p.GetHostPort() > 65535 || p.GetContainerPort() < 1 || p.GetContainerPort() > 65535 {
			return nil, bad
		}
		served := false
		for _, ip := range addresses(s) {
			if host.IsValid() && host.Unmap().Is4() != ip.Is4() {
				continue
			}
			served = true
			out = append(out, network.Mapping{Proto: proto, HostIP: host.Unmap(), HostPort: uint16(p.GetHostPort()),
				To: netip.AddrPortFrom(ip, uint16(p.GetContainerPort()))})
		}
		if !served {
			return nil, fmt.Errorf("%w; the pod has %v", bad, s.IPs)
		}
	}
	return out, nil
}
