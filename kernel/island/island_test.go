package island

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"worknode/kernel/netns"
)

func TestIslandHasAnAddressARouteAndNoWayOut(t *testing.T) {
	dir := t.TempDir() + "/island"
	for range 2 { // making it again changes nothing
		if _, err := Make(dir, netip.MustParsePrefix("10.77.0.1/24"), netip.MustParseAddr("10.77.0.254"), netip.MustParsePrefix("10.96.0.0/16")); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		if err := Remove(dir); err != nil {
			t.Error(err)
		}
		if netns.Pinned(dir + "/net") {
			t.Error("the pin is still there")
		}
	}()
	err := netns.Do(dir+"/net", func() error {
		own, err := net.Listen("tcp4", "10.77.0.1:0")
		if err != nil {
			return err
		}
		defer own.Close()
		conn, err := net.DialTimeout("tcp4", own.Addr().String(), time.Second)
		if err != nil {
			return err
		}
		conn.Close()
		if conn, err := net.DialTimeout("tcp4", "192.0.2.1:80", time.Second); err == nil {
			conn.Close()
			t.Error("somebody answered from outside")
		} else if !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("the outside: %v, want to be told at once that there is none", err)
		}
		if conn, err := net.DialTimeout("tcp4", "10.96.0.1:80", 100*time.Millisecond); err == nil {
			conn.Close()
			t.Error("a Service that nobody translates answered")
		} else if late := net.Error(nil); !errors.As(err, &late) || !late.Timeout() {
			t.Errorf("a Service address: %v, want it to have a route", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
