package network

import (
	"fmt"
	"net/netip"
	"testing"

	"worknode/fault"
)

func TestPoolGivesEachAddressOnceAndGoesRound(t *testing.T) {
	p := newPool(netip.MustParsePrefix("10.0.0.8/29"))
	var got []string
	for i := range 5 {
		a, err := p.take(fmt.Sprint("s", i))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, a.String())
	}
	if want := "[10.0.0.10 10.0.0.11 10.0.0.12 10.0.0.13 10.0.0.14]"; fmt.Sprint(got) != want {
		t.Fatalf("got %v, want %s", got, want)
	}
	if _, err := p.take("one more"); !fault.Is(err, fault.Exhausted) {
		t.Fatalf("want Exhausted, got %v", err)
	}
	if a, err := p.take("s2"); err != nil || a.String() != "10.0.0.12" {
		t.Fatalf("a sandbox must keep its address, got %v, %v", a, err)
	}
	p.give("s1")
	p.give("s3")
	p.give("never was")
	for _, want := range []string{"10.0.0.11", "10.0.0.13"} {
		if a, err := p.take("new" + want); err != nil || a.String() != want {
			t.Fatalf("got %v, %v, want %s", a, err, want)
		}
	}
}

func TestPoolTakesWhatRecordsSay(t *testing.T) {
	p := newPool(netip.MustParsePrefix("10.0.0.0/24"))
	for _, tt := range []struct {
		sandbox, addr string
		want          fault.Kind
	}{
		{"a", "10.0.0.7", fault.Unknown},
		{"a", "10.0.0.7", fault.Unknown},
		{"b", "10.0.0.7", fault.Exists},
		{"b", "10.0.0.1", fault.Invalid},
		{"b", "10.0.0.0", fault.Invalid},
		{"b", "10.0.0.255", fault.Invalid},
		{"b", "10.0.1.7", fault.Invalid},
		{"b", "fd00::7", fault.Invalid},
	} {
		err := p.claim(tt.sandbox, netip.MustParseAddr(tt.addr))
		if fault.Of(err) != tt.want || (err == nil) != (tt.want == fault.Unknown) {
			t.Errorf("claim %s for %s: %v, want %v", tt.addr, tt.sandbox, err, tt.want)
		}
	}
	if a, err := p.take("c"); err != nil || a.String() != "10.0.0.8" {
		t.Errorf("got %v, %v: a freed address must rest", a, err)
	}
}
