package link

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/netns"
)

// inside runs fn in a fresh net namespace and hands it a Handle there.
func inside(t testing.TB, fn func(h *Handle) error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network devices: run it as root")
	}
	if err := netns.Do(namespace(t), func() error {
		h, err := Open()
		if err != nil {
			return err
		}
		defer h.Close()
		return fn(h)
	}); err != nil {
		t.Fatal(err)
	}
}

func namespace(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ns")
	if err := netns.Create(dir, "", netns.Net); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netns.Unpin(dir) })
	return filepath.Join(dir, "net")
}

var mac = net.HardwareAddr{0x0a, 0x58, 10, 9, 0, 1}

func TestVethLandsInTheOtherNamespaceReadyToUse(t *testing.T) {
	pod := namespace(t)
	inside(t, func(h *Handle) error {
		br, err := h.EnsureBridge("br-t", 1400, mac)
		if err != nil {
			return err
		}
		if br.Kind != "bridge" || !br.Up || br.MTU != 1400 || br.MAC.String() != mac.String() {
			t.Errorf("bridge is %+v", br)
		}
		fd, err := unix.Open(pod, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		peer := net.HardwareAddr{0x0a, 0x58, 10, 9, 0, 7}
		v := Veth{Name: "veth-t", Bridge: br.Index, MTU: 1400, PeerName: "eth0", PeerNS: fd, PeerMAC: peer}
		if err := h.AddVeth(v); err != nil {
			return err
		}
		if err := h.AddVeth(v); !fault.Is(err, fault.Exists) {
			t.Errorf("a second pair of that name: want Exists, got %v", err)
		}
		port, err := h.Get("veth-t")
		if err != nil {
			return err
		}
		if port.Master != br.Index || !port.Up {
			t.Errorf("port is %+v, bridge %d", port, br.Index)
		}
		if got, err := os.ReadFile("/proc/thread-self/net/dev"); err != nil || len(got) == 0 {
			return err
		}
		return netns.Do(pod, func() error {
			p, err := Open()
			if err != nil {
				return err
			}
			defer p.Close()
			want := netip.MustParsePrefix("10.9.0.7/32")
			for range 2 {
				if err := p.SetupInside("eth0", want.Addr(), netip.MustParseAddr("10.9.0.1")); err != nil {
					return err
				}
			}
			d, err := p.Get("eth0")
			if err != nil {
				return err
			}
			if !d.Up || d.MTU != 1400 || d.MAC.String() != peer.String() {
				t.Errorf("eth0 is %+v", d)
			}
			addrs, err := p.Addresses()
			if err != nil {
				return err
			}
			found := false
			for _, a := range addrs {
				found = found || a == Address{d.Index, want}
			}
			if !found {
				t.Errorf("%s is not among %v", want, addrs)
			}
			return nil
		})
	})
}

func TestBridgeIsAdoptedAndAStrangerIsRefused(t *testing.T) {
	pod := namespace(t)
	inside(t, func(h *Handle) error {
		one, err := h.EnsureBridge("br-t", 1500, mac)
		if err != nil {
			return err
		}
		two, err := h.EnsureBridge("br-t", 1400, mac)
		if err != nil {
			return err
		}
		if one.Index != two.Index || two.MTU != 1400 {
			t.Errorf("not adopted: %+v, then %+v", one, two)
		}
		fd, err := unix.Open(pod, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := h.AddVeth(Veth{Name: "veth-t", Bridge: one.Index, MTU: 1500, PeerName: "eth0", PeerNS: fd, PeerMAC: mac}); err != nil {
			return err
		}
		if _, err := h.EnsureBridge("veth-t", 1500, mac); !fault.Is(err, fault.Exists) {
			t.Errorf("a veth passed for a bridge: %v", err)
		}
		for range 2 {
			if err := h.Delete("veth-t"); err != nil {
				return err
			}
		}
		list, err := h.List()
		if err != nil {
			return err
		}
		for _, d := range list {
			if d.Name == "veth-t" {
				t.Error("the veth is still there")
			}
		}
		if _, err := h.Get("veth-t"); !fault.Is(err, fault.NotFound) {
			t.Errorf("want NotFound, got %v", err)
		}
		return nil
	})
}

func TestAddressesComeAndGo(t *testing.T) {
	inside(t, func(h *Handle) error {
		br, err := h.EnsureBridge("br-t", 1500, mac)
		if err != nil {
			return err
		}
		p := netip.MustParsePrefix("10.9.0.1/24")
		for range 2 {
			if err := h.SetAddress(br.Index, p); err != nil {
				return err
			}
		}
		has := func() bool {
			all, err := h.Addresses()
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range all {
				if a == (Address{br.Index, p}) {
					return true
				}
			}
			return false
		}
		if !has() {
			t.Error("the address did not arrive")
		}
		for range 2 {
			if err := h.DropAddress(br.Index, p); err != nil {
				return err
			}
		}
		if has() {
			t.Error("the address stayed")
		}
		return nil
	})
}

func TestDeviceToFollowsTheRoutes(t *testing.T) {
	inside(t, func(h *Handle) error {
		br, err := h.EnsureBridge("br-t", 1500, mac)
		if err != nil {
			return err
		}
		if _, err := h.DeviceTo(netip.MustParseAddr("10.9.0.7")); !fault.Is(err, fault.NotFound) {
			t.Errorf("without a route: %v", err)
		}
		if err := h.SetAddress(br.Index, netip.MustParsePrefix("10.9.0.1/24")); err != nil {
			return err
		}
		got, err := h.DeviceTo(netip.MustParseAddr("10.9.0.7"))
		if err != nil || got != br.Index {
			t.Errorf("device %d, %v, want %d", got, err, br.Index)
		}
		return nil
	})
}
