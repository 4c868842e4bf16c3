package act

import (
	"encoding/binary"
	"errors"
	"maps"
	"net/netip"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"worknode/kernel/nft"
	"worknode/proxy/plan"
	"worknode/proxy/state"
)

// lab is a socket in a network namespace that lives as long as the process.
var lab = sync.OnceValues(func() (conn *nft.Conn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends here, the socket keeps its namespace
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			conn, err = nft.Open()
		}
	}()
	<-done
	return conn, err
})

// elements makes a table's content of any bytes: keys and values of all sets, each key once, ranges apart.
func elements(fam state.Family, data []byte) map[plan.Key]plan.Value {
	out := map[plan.Key]plan.Value{}
	var ranges []plan.Key
	take := func(n int) []byte {
		b := make([]byte, n)
		data = data[copy(b, data):]
		return b
	}
	addr := func() netip.Addr {
		if b := take(16); fam == state.V6 {
			return netip.AddrFrom16([16]byte(b))
		} else {
			return netip.AddrFrom4([4]byte(b[:4]))
		}
	}
	// Chains that lead back to the map would be a loop, which the kernel refuses as EMLINK.
	chains := func(s plan.Set) []plan.Chain {
		switch s {
		case plan.Fronts:
			return []plan.Chain{plan.Drop, plan.External, plan.ExternalLocal}
		case plan.NodePorts:
			return []plan.Chain{plan.Drop, plan.NodePort, plan.NodePortLocal}
		case plan.Refused, plan.RefusedNode:
			return []plan.Chain{plan.Drop, plan.Refuse}
		}
		return []plan.Chain{plan.Drop}
	}
next:
	for len(data) > 0 && len(out) < 200 {
		head := take(8)
		k := plan.Key{Set: plan.Set(head[0]) % plan.Sets}
		var v plan.Value
		for _, f := range k.Set.Key() {
			switch f {
			case plan.Daddr:
				k.Addr = addr()
			case plan.Proto:
				k.Proto = state.Proto(head[1])
			case plan.Dport:
				k.Port = binary.BigEndian.Uint16(head[2:])
			case plan.Slot:
				k.Slot = binary.BigEndian.Uint16(head[4:])
			case plan.Saddr:
				if k.Set == plan.Allowed {
					a := addr()
					k.From, _ = a.Prefix(int(head[6]) % (a.BitLen() + 1))
				}
			}
		}
		switch {
		case k.Set.Data():
			v.To = netip.AddrPortFrom(addr(), binary.BigEndian.Uint16(take(2)))
		case k.Set.Verdicts():
			to := chains(k.Set)
			v.Chain = to[int(head[7])%len(to)]
		case k.Set == plan.Allowed:
			for _, other := range ranges {
				same := other
				same.From = k.From
				if same == k && other.From.Overlaps(k.From) {
					continue next
				}
			}
			ranges = append(ranges, k)
		}
		out[k] = v
	}
	return out
}

// Whatever keys and values there are, the kernel gives back what was written.
func FuzzKernelGivesBackWhatWasWritten(f *testing.F) {
	conn, err := lab()
	if err != nil {
		f.Fatal(err)
	}
	tables := Open(conn, false)
	for _, seed := range []string{"", "\x00\x06\x00\x50\x00\x01\x00\x00ten.0.0.1 sixteen", "\x07\x11\x00\x35\x00\x00\x18\x00" + "0123456789abcdef0123456789abcdef" + "\x07\x11\x00\x35\x00\x00\x1f\x00", "\x10\x84\xff\xff\x00\x00\x00\x01"} {
		f.Add(false, []byte(seed))
		f.Add(true, []byte(seed))
	}
	f.Fuzz(func(t *testing.T, v6 bool, data []byte) {
		fam := state.V4
		if v6 {
			fam = state.V6
		}
		want := plan.Want{Rules: plan.Rules{Family: fam}}
		d := plan.Full(plan.Have{}, nil, want)
		have := elements(fam, data)
		for s := plan.Set(0); s < plan.Sets; s++ {
			for k, v := range have {
				if k.Set == s {
					d.Add = append(d.Add, plan.Elem{Key: k, Value: v})
				}
			}
		}
		seen, err := tables.Look(fam, want.Rules.Known())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tables.Apply(Change{Family: fam, Delta: &d, Make: true, Exists: seen.Exists}); err != nil {
			if errors.Is(err, unix.ENOMEM) {
				t.Skip("the machine has no memory left")
			}
			t.Fatalf("%v; elements %v", err, have)
		}
		if seen, err = tables.Look(fam, want.Rules.Known()); err != nil || !seen.Usable {
			t.Fatalf("look: %s %v; elements %v", seen.Why, err, have)
		}
		if !maps.Equal(seen.Elems, have) {
			t.Fatalf("wrote %v\nread  %v", have, seen.Elems)
		}
	})
}
