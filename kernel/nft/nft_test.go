package nft

import (
	"context"
	"encoding/binary"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// inNetns runs the test on a thread in a network namespace of its own, which dies with the thread.
func inNetns(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces and needs root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test's goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB) *Conn {
	t.Helper()
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func key(i int, slot int) []byte {
	b := binary.BigEndian.AppendUint32(nil, 0x0a600000+uint32(i))
	b = append(b, 6, 0, 0, 0, 0, 80, 0, 0)
	return binary.NativeEndian.AppendUint32(b, uint32(slot))
}

func data(i int) []byte {
	return append(binary.BigEndian.AppendUint32(nil, 0x0a000000+uint32(i)), 0x1f, 0x90, 0, 0)
}

var epSet = Set{Name: "ep", Key: []Type{TypeIPv4, TypeProto, TypePort, TypeMark}, Data: []Type{TypeIPv4, TypePort}}

func TestBatchLoadsDumpsAndChangesElements(t *testing.T) {
	inNetns(t)
	c := open(t)
	const n = 5000 // several messages
	b := NewBatch(IPv4, "t")
	b.AddTable(0, "a comment")
	b.AddSet(epSet)
	elems := make([]Elem, n)
	for i := range elems {
		elems[i] = Elem{Key: key(i, i%3), Data: data(i)}
	}
	b.AddElems("ep", elems)
	if err := c.Commit(b); err != nil {
		t.Fatal(err)
	}
	tab, err := c.Table(IPv4, "t")
	if err != nil || tab.Comment != "a comment" {
		t.Fatalf("table %+v, %v", tab, err)
	}
	// Replace one element and remove another in one transaction.
	b = NewBatch(IPv4, "t")
	b.DelElems("ep", elems[:2])
	b.AddElems("ep", []Elem{{Key: elems[0].Key, Data: data(77)}})
	if err := c.Commit(b); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	reset := func() { clear(got) }
	if err := c.Elems(IPv4, "t", "ep", reset, func(e Elem) { got[string(e.Key)] = string(e.Data) }); err != nil {
		t.Fatal(err)
	}
	if len(got) != n-1 || got[string(key(0, 0))] != string(data(77)) {
		t.Fatalf("%d elements, first is %x", len(got), got[string(key(0, 0))])
	}
}

func TestRefusalNamesOperationAndChangesNothing(t *testing.T) {
	inNetns(t)
	c := open(t)
	b := NewBatch(IPv4, "t")
	b.AddTable(0, "")
	b.AddSet(epSet)
	if err := c.Commit(b); err != nil {
		t.Fatal(err)
	}
	b = NewBatch(IPv4, "t")
	b.AddElems("ep", []Elem{{Key: key(1, 0), Data: data(1)}})
	b.DelElems("ep", []Elem{{Key: key(2, 0)}})
	b.AddElems("ep", []Elem{{Key: key(3, 0), Data: data(1)}})
	err := c.Commit(b)
	if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "delete elements from set ep") {
		t.Fatalf("got %v", err)
	}
	n := 0
	if err := c.Elems(IPv4, "t", "ep", nil, func(Elem) { n++ }); err != nil || n != 0 {
		t.Fatalf("%d elements after a refused batch, %v", n, err)
	}
	if _, err := c.Table(IPv4, "absent"); !fault.Is(err, fault.NotFound) {
		t.Fatalf("absent table: %v", err)
	}
}

func TestOwnedTableIsClosedToOthersAndClaimedAfterwards(t *testing.T) {
	inNetns(t)
	first, second := open(t), open(t)
	make := func() *Batch {
		b := NewBatch(IPv4, "t")
		b.AddTable(FlagOwner|FlagPersist, "")
		return b
	}
	err := first.Commit(make())
	if !first.OwnedTables(IPv4) { // before 6.9
		if !fault.Is(err, fault.Unsupported) {
			t.Fatalf("a kernel without owned tables says %v", err)
		}
		return
	}
	if tab, terr := second.Table(IPv4, "t"); err != nil || terr != nil || tab.Owner != first.Port() {
		t.Fatalf("table %+v, %v, %v; want owner %d", tab, err, terr, first.Port())
	}
	if err := second.Commit(make()); !fault.Is(err, fault.Denied) {
		t.Fatalf("a second owner got in: %v", err)
	}
	if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
		t.Fatalf("nft flush ruleset: %v %s", err, out)
	}
	if _, err := second.Table(IPv4, "t"); err != nil {
		t.Fatalf("flush ruleset removed an owned table: %v", err)
	}
	first.Close()
	if err := second.Commit(make()); err != nil {
		t.Fatalf("claim of an orphaned table: %v", err)
	}
}

func TestMissingFindsNothingHereAndLeavesNoTrace(t *testing.T) {
	inNetns(t)
	c := open(t)
	for _, fam := range []Family{IPv4, IPv6} {
		if err := c.Missing(fam); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Table(fam, probeTable); !fault.Is(err, fault.NotFound) {
			t.Fatalf("probe left its table: %v", err)
		}
	}
	b := NewBatch(IPv4, probeTable)
	b.AddTable(0, "")
	rule(Expr{"nosuchexpr", func(*encoder) {}})(b)
	b.ask()
	if err := c.run(b); !fault.Is(err, fault.NotFound) {
		t.Fatalf("an unknown expression is reported as %v", err)
	}
}

func TestWatchHearsOthersOnly(t *testing.T) {
	inNetns(t)
	us, them := open(t), open(t)
	touch := func(c *Conn, table string) {
		b := NewBatch(IPv4, table)
		b.AddTable(0, "")
		b.AddChain("x", nil)
		b.AddRule("x", L4Proto(R0))
		if err := c.Commit(b); err != nil {
			t.Fatal(err)
		}
	}
	touch(us, "ours")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	heard := 0
	// The watch runs on this thread, which alone is in the namespace; the first touch comes from its first call.
	fromTimer := time.AfterFunc(0, func() {
		for ctx.Err() == nil {
			touch(us, "ours")
			touch(them, "other")
			touch(them, "ours")
			<-time.After(5 * time.Millisecond)
		}
	})
	defer fromTimer.Stop()
	if err := Watch(ctx, "ours", us.Port(), func() { heard++; cancel() }); err != nil || heard == 0 {
		t.Fatalf("heard %d changes, %v", heard, err)
	}
}

func BenchmarkReplaceOneElement(b *testing.B) {
	inNetns(b)
	c := open(b)
	load := NewBatch(IPv4, "t")
	load.AddTable(0, "")
	load.AddSet(epSet)
	for i := range 3000 {
		load.AddElems("ep", []Elem{{Key: key(i/3, i%3), Data: data(i)}})
	}
	if err := c.Commit(load); err != nil {
		b.Fatal(err)
	}
	e := []Elem{{Key: key(7, 1), Data: data(1)}}
	for b.Loop() {
		x := NewBatch(IPv4, "t")
		x.DelElems("ep", e)
		x.AddElems("ep", e)
		if err := c.Commit(x); err != nil {
			b.Fatal(err)
		}
	}
}
