// Package network is the runtime's built-in pod network: one bridge, a veth pair and an IPv4 address for each sandbox,
// and masquerade for what leaves the pods' subnet. It is for standalone nodes and for those who ask for it.
//
// A pod's address is alone on its link (/32) and everything goes through the bridge's address, also to the pod next
// door: were pods neighbours, an answer to a Service's client on the same node would take the short way and miss the
// translation back. So no br_netfilter is needed, and the node's rules see all traffic.
//
// Nothing is written to disk. Devices are named after their sandbox, addresses stand in the sandboxes' own records:
// Reconcile compares the two after a start.
package network

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/link"
	"worknode/kernel/netns"
	"worknode/kernel/nft"
	"worknode/task"
)

// Interface is the device that a pod sees.
const Interface = "eth0"

// portPrefix begins the name of each device we add to the bridge.
const portPrefix = "wn-"

const defaultMTU = 1500

// Config is what the network is made of.
type Config struct {
	Bridge string       // device name, at most 15 bytes
	Subnet netip.Prefix // IPv4; its first address is the bridge's, the rest are the pods'
	MTU    int          // bytes; 0 takes that of the default route's device, or 1500
}

// Result is a sandbox's place in the network.
type Result struct {
	IPs       []netip.Addr
	Gateway   netip.Addr
	Interface string
	MTU       int // bytes
}

// Bridge is the network, bound to the net namespace of the thread that called Open. Its methods may be called from
// several goroutines, for one sandbox in turn.
type Bridge struct {
	name    string
	subnet  netip.Prefix
	gateway netip.Addr
	mtu     int
	index   int
	links   *link.Handle
	slow    *link.Handle // for deletions, which take long
	rules   *nft.Conn    // owns the table for as long as we live
	table   string
	pool    *pool
	leaving *leaving
	tasks   *task.Group
}

// Open makes the bridge, its address and its rules, or adopts those of a predecessor; pods stay connected.
// It turns ip_forward on.
// Errors: Invalid names the setting; Exists if the device name or the subnet is taken; Denied without CAP_NET_ADMIN.
func Open(c Config) (*Bridge, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	b := &Bridge{name: c.Bridge, subnet: c.Subnet.Masked(), mtu: c.MTU, table: tableName(c.Bridge)}
	b.gateway = b.subnet.Addr().Next()
	b.pool, b.leaving, b.tasks = newPool(b.subnet), newLeaving(), task.New(context.Background())
	if err := b.open(); err != nil {
		b.close()
		return nil, fmt.Errorf("pod network %s: %w", c.Bridge, err)
	}
	b.tasks.Go("network-janitor", b.janitor)
	return b, nil
}

func (c Config) check() error {
	s := c.Subnet
	if !s.IsValid() || !s.Addr().Is4() || s.Bits() < 8 || s.Bits() > 29 {
		return fault.New(fault.Invalid, "pod subnet %q: an IPv4 prefix of /8 to /29 is needed, such as 10.88.0.0/16", s)
	}
	if c.Bridge == "" || len(c.Bridge) > link.MaxName || strings.ContainsAny(c.Bridge, "/ :\t\n") {
		return fault.New(fault.Invalid, "bridge name %q: 1 to %d bytes, no slash, colon or space", c.Bridge, link.MaxName)
	}
	if c.MTU != 0 && (c.MTU < 576 || c.MTU > 65535) {
		return fault.New(fault.Invalid, "pod network MTU %d: 576 to 65535 bytes", c.MTU)
	}
	return nil
}

func (b *Bridge) open() (err error) {
	if b.links, err = link.Open(); err != nil {
		return err
	}
	if b.slow, err = link.Open(); err != nil {
		return err
	}
	if b.mtu == 0 {
		b.mtu = b.uplinkMTU()
	}
	if err := b.subnetFree(); err != nil {
		return err
	}
	dev, err := b.links.EnsureBridge(b.name, b.mtu, hardware(b.gateway))
	if err != nil {
		return err
	}
	b.index = dev.Index
	if err := b.setAddress(); err != nil {
		return err
	}
	// Pods must not be able to advertise routes to the node (the class of CVE-2020-10749); the bridge is IPv4 only.
	if err := sysctl("net/ipv6/conf/"+b.name+"/disable_ipv6", "1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := sysctl("net/ipv4/ip_forward", "1"); err != nil {
		return fault.Hint(err, "pods reach nothing beyond the node without it")
	}
	if b.rules, err = nft.Open(); err != nil {
		return err
	}
	return b.setRules()
}

// subnetFree refuses a subnet that another device already has: both would get half of each other's traffic.
func (b *Bridge) subnetFree() error {
	all, err := b.links.Addresses()
	if err != nil {
		return err
	}
	devices, err := b.links.List()
	if err != nil {
		return err
	}
	names := map[int]string{}
	for _, d := range devices {
		names[d.Index] = d.Name
	}
	for _, a := range all {
		if names[a.Index] != b.name && a.Prefix.Overlaps(b.subnet) {
			err := fault.New(fault.Exists, "subnet %s: device %s has %s", b.subnet, names[a.Index], a.Prefix)
			return fault.Hint(err, "choose another pod subnet")
		}
	}
	return nil
}

// setAddress gives the bridge the gateway's address and takes away those of an earlier subnet.
func (b *Bridge) setAddress() error {
	want := netip.PrefixFrom(b.gateway, b.subnet.Bits())
	all, err := b.links.Addresses()
	if err != nil {
		return err
	}
	for _, a := range all {
		if a.Index == b.index && a.Prefix != want && a.Prefix.Addr().Is4() {
			if err := b.links.DropAddress(b.index, a.Prefix); err != nil {
				return err
			}
		}
	}
	return b.links.SetAddress(b.index, want)
}

// uplinkMTU is the MTU of the device with the default route: larger packets of pods would be dropped on their way.
func (b *Bridge) uplinkMTU() int {
	f, err := os.Open("/proc/thread-self/net/route")
	if err != nil {
		return defaultMTU
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// Iface Destination Gateway Flags RefCnt Use Metric Mask ...
		col := strings.Fields(lines.Text())
		if len(col) < 8 || col[1] != "00000000" || col[7] != "00000000" || col[0] == b.name {
			continue
		}
		if d, err := b.links.Get(col[0]); err == nil && d.MTU >= 576 {
			return d.MTU
		}
	}
	return defaultMTU
}

// Ready reports what keeps pods from being connected, nil if nothing does.
func (b *Bridge) Ready() error {
	d, err := b.links.Get(b.name)
	if err == nil && (d.Index != b.index || !d.Up) {
		err = fault.New(fault.Temporary, "device %s was replaced or taken down", b.name)
	}
	if err == nil {
		_, err = b.rules.Table(nft.IPv4, b.table)
	}
	if err != nil {
		return fault.Hint(fmt.Errorf("pod network %s: %w", b.name, err), "restart the runtime to make it anew")
	}
	return nil
}

// Add connects the sandbox's net namespace and returns its address. A sandbox that has an address keeps it.
// Errors: Exhausted if the subnet is full; NotFound if the namespace is gone. After an error nothing is left.
// Repeat: safe. Crash: a device named after the sandbox may stay; Del or Reconcile removes it.
func (b *Bridge) Add(ctx context.Context, sandbox, netnsPath string) (Result, error) {
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	if b.leaving.has(sandbox) {
		return Result{}, fault.New(fault.Temporary, "pod network %s: sandbox %s is still being disconnected", b.name, sandbox)
	}
	addr, err := b.pool.take(sandbox)
	if err != nil {
		return Result{}, fmt.Errorf("pod network %s: %w", b.name, err)
	}
	if err := b.connect(sandbox, netnsPath, addr); err != nil {
		err = fmt.Errorf("pod network %s: connect sandbox %s: %w", b.name, sandbox, err)
		if clean := b.links.Delete(portName(sandbox)); clean != nil {
			return Result{}, errors.Join(err, clean)
		}
		b.pool.give(sandbox)
		return Result{}, err
	}
	return Result{IPs: []netip.Addr{addr}, Gateway: b.gateway, Interface: Interface, MTU: b.mtu}, nil
}

func (b *Bridge) connect(sandbox, netnsPath string, addr netip.Addr) error {
	ns, err := os.Open(netnsPath)
	if err != nil {
		return fault.New(fault.NotFound, "net namespace: %w", err)
	}
	defer ns.Close()
	v := link.Veth{Name: portName(sandbox), Bridge: b.index, MTU: b.mtu,
		PeerName: Interface, PeerNS: int(ns.Fd()), PeerMAC: hardware(addr)}
	err = b.links.AddVeth(v)
	if fault.Is(err, fault.Exists) { // of an attempt that a crash cut short
		if err := b.links.Delete(v.Name); err != nil {
			return err
		}
		err = b.links.AddVeth(v)
	}
	if err != nil {
		return err
	}
	return netns.Do(netnsPath, func() error {
		h, err := link.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		return h.SetupInside(Interface, addr, b.gateway)
	})
}

// Del disconnects the sandbox: its device goes with the pod's namespace, which the caller lets go of next, or a second
// later without that. The address is free once the device is gone. It does not wait for either.
// Repeat: safe, also for a sandbox that never was. Crash: Reconcile removes the device.
func (b *Bridge) Del(_ context.Context, sandbox, _ string) error {
	b.leaving.add(sandbox, time.Now())
	return nil
}

// Reconcile takes the addresses of the sandboxes that live, as their records say, and removes devices of all others.
// Call it once, between Open and the first Add. An address outside the subnet (it was changed) is left alone and logged.
func (b *Bridge) Reconcile(live map[string][]netip.Addr) error {
	known := map[string]bool{}
	for sandbox, addrs := range live {
		known[portName(sandbox)] = true
		for _, a := range addrs {
			if err := b.pool.claim(sandbox, a); err != nil {
				slog.Warn("sandbox keeps an address that is not ours to give", "sandbox", sandbox, "err", err)
			}
		}
	}
	devices, err := b.links.List()
	if err != nil {
		return fmt.Errorf("pod network %s: %w", b.name, err)
	}
	for _, d := range devices {
		if d.Master != b.index || !strings.HasPrefix(d.Name, portPrefix) || known[d.Name] {
			continue
		}
		slog.Info("device of a dead sandbox removed", "device", d.Name, "bridge", b.name)
		if err := b.links.Delete(d.Name); err != nil {
			return fmt.Errorf("pod network %s: %w", b.name, err)
		}
	}
	return nil
}

// Close lets go of the network. With remove it is taken down: devices, bridge and rules (ip_forward stays on);
// otherwise all stays as it is for the next Open. Repeat: safe; no other method may follow.
func (b *Bridge) Close(remove bool) error {
	b.tasks.Stop()
	var err error
	if remove && b.links != nil {
		err = takeDown(b.links, b.rules, b.name)
	}
	b.close()
	return err
}

func (b *Bridge) close() {
	b.tasks.Stop()
	for _, h := range []*link.Handle{b.slow, b.links} {
		if h != nil {
			h.Close()
		}
	}
	if b.rules != nil {
		b.rules.Close()
	}
	b.slow, b.links, b.rules = nil, nil, nil
}

// Remove takes down what a process that is gone left of the network with this bridge, in the calling thread's net
// namespace. Repeat: safe.
func Remove(bridge string) error {
	links, err := link.Open()
	if err != nil {
		return err
	}
	defer links.Close()
	rules, err := nft.Open()
	if err != nil {
		return err
	}
	defer rules.Close()
	return takeDown(links, rules, bridge)
}

func takeDown(links *link.Handle, rules *nft.Conn, bridge string) error {
	var errs []error
	dev, err := links.Get(bridge)
	if err == nil && dev.Kind == "bridge" {
		devices, err := links.List()
		errs = append(errs, err)
		for _, d := range devices {
			if d.Master == dev.Index && strings.HasPrefix(d.Name, portPrefix) {
				errs = append(errs, links.Delete(d.Name))
			}
		}
		errs = append(errs, links.Delete(bridge))
	} else if err != nil && !fault.Is(err, fault.NotFound) {
		errs = append(errs, err)
	}
	errs = append(errs, removePorts(rules, portsTable(bridge)), removeTable(rules, nft.IPv4, tableName(bridge)))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove pod network %s: %w", bridge, err)
	}
	return nil
}

// portName is the device of a sandbox on the node's side. Ids are long, names are not: 48 bits of a digest stand for it.
func portName(sandbox string) string {
	sum := sha256.Sum256([]byte(sandbox))
	return portPrefix + hex.EncodeToString(sum[:6])
}

// hardware derives the MAC from the address, so that nobody's ARP entry is wrong when an address is given again.
// 0a:58 is locally administered and customary for this.
func hardware(a netip.Addr) net.HardwareAddr {
	return append(net.HardwareAddr{0x0a, 0x58}, a.AsSlice()...)
}

// sysctl writes a setting of the net namespace, unless it has that value: /proc/sys may be read-only.
func sysctl(name, value string) error {
	path := "/proc/sys/" + name
	have, err := os.ReadFile(path)
	if err == nil && strings.TrimSpace(string(have)) == value {
		return nil
	}
	if err == nil {
		err = os.WriteFile(path, []byte(value), 0o644)
	}
	if err != nil {
		kind := fault.Unknown
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS) {
			kind = fault.Denied
		}
		return fault.New(kind, "set %s to %s: %w", strings.ReplaceAll(name, "/", "."), value, err)
	}
	return nil
}
