package proxy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"worknode/test/bed"
)

// TestStorm: no connection fails while endpoints are replaced as fast as the API delivers, the proxy is killed again and
// again, and somebody flushes the ruleset. `make test-long` makes 100,000 of them.
func TestStorm(t *testing.T) { storm(t, 10_000, 3) }

// pool are endpoints that always answer, whether they are in a slice at the moment or not.
var pool = []string{"10.180.0.1 here", "10.180.0.2 here", "10.180.0.3 here", "10.180.1.1", "10.180.1.2", "10.180.1.3", "10.180.2.1", "10.180.2.2"}

const stormServices = `
service storm/a LoadBalancer ip 172.30.0.61 lb 1.2.3.4 external 192.168.99.11 port http 80/tcp node 3001
service storm/b LoadBalancer ip 172.30.0.62 lb 5.6.7.8 port http 80/tcp node 3002 affinity 1
service storm/steady ip 172.30.0.63 port http 80/tcp port dns 53/udp
slice storm/steady port http 80/tcp port dns 53/udp at 10.180.0.4 here at 10.180.1.4
service storm/talk ip 172.30.0.64 port http 80/tcp port dns 53/udp
`

// stormPaths are the ways that connections go.
var stormPaths = []struct{ from, to string }{
	{bed.PodIP, "172.30.0.61:80"}, {bed.Outside, bed.NodeIP + ":3001"}, {bed.Outside, "1.2.3.4:80"}, {bed.NodeIP, "172.30.0.61:80"},
	{"10.0.0.3", "172.30.0.62:80"}, {"203.0.113.3", "5.6.7.8:80"}, {"10.0.0.4", "172.30.0.63:80"}, {"10.0.0.5", "172.30.0.64:80"},
}

// some is a slice of a Service with any endpoints but none.
func some(service string) string {
	ports := " port http 80/tcp"
	if service == "talk" {
		ports += " port dns 53/udp"
	}
	n := 1 + rand.N(len(pool))
	var at []string
	for _, i := range rand.Perm(len(pool))[:n] {
		at = append(at, "at "+pool[i])
	}
	return "slice storm/" + service + ports + " " + strings.Join(at, " ")
}

func storm(t *testing.T, connections int64, kills int) {
	s := newStage(t, worknode, configs[0])
	s.apply(stormServices + some("a") + "\n" + some("b") + "\n" + some("talk"))
	lasting := newLasting(s)

	var made, failed, changes atomic.Int64
	var mu sync.Mutex
	var examples []string
	var clients sync.WaitGroup
	for _, path := range stormPaths {
		q := &bed.Quick{Packet: packet(path.from, path.to, "tcp"), Within: 5 * time.Second}
		if rand.N(2) == 0 {
			q.Packet = q.Twin()
		}
		clients.Add(1)
		go func() {
			defer clients.Done()
			err := s.bed.Each(q, func(a bed.Answer, _ time.Duration, err error) bool {
				if err == nil && a.At == q.To {
					err = fmt.Errorf("the Service's address was left as it is")
				}
				if err != nil {
					failed.Add(1)
					mu.Lock()
					if len(examples) < 10 {
						examples = append(examples, fmt.Sprintf("%s: %v", q.Packet, err))
					}
					mu.Unlock()
				}
				return made.Add(1) < connections
			})
			if err != nil {
				t.Error(err)
			}
		}()
	}

	over := make(chan struct{})
	var weather sync.WaitGroup
	weather.Add(1)
	go func() { // rain: endpoints come and go
		defer weather.Done()
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-over:
				return
			case <-tick.C:
				sc, err := parseScene("storm", some([]string{"a", "b", "talk"}[rand.N(3)]))
				if err != nil {
					panic(err)
				}
				s.api.Put(sc.steps[0].put...)
				changes.Add(1)
			}
		}
	}()

	// Thunder, in this goroutine: one after the other, so that nobody flushes a table that has no owner.
	began, count, wiped := time.Now(), 0, 0
	for made.Load() < connections || count < kills {
		lasting.check()
		s.wipe()
		wiped++
		lasting.check()
		s.kill()
		lasting.check()
		s.start()
		s.sync()
		count++
		if made.Load() >= connections && count >= kills {
			break
		}
		if t.Failed() {
			break
		}
	}
	clients.Wait()
	close(over)
	weather.Wait()
	lasting.check()
	t.Logf("%d of %d connections failed, amid %d changes of endpoints, %d kills and %d wipes in %v",
		failed.Load(), made.Load(), changes.Load(), count, wiped, time.Since(began).Round(time.Millisecond))
	if failed.Load() > 0 {
		t.Errorf("%d of %d connections failed, such as:\n%s", failed.Load(), made.Load(), strings.Join(examples, "\n"))
	}
}

// wipe does to the ruleset what careless programs do. Our tables have an owner, so the kernel leaves them alone; the
// proxy says so itself where it cannot (before Linux 6.9), and the test with it.
func (s *stage) wipe() {
	s.t.Helper()
	if out, err := s.bed.Command("node", "nft", "flush", "ruleset").CombinedOutput(); err != nil {
		s.t.Errorf("nft flush ruleset: %v: %s", err, out)
	}
	for _, family := range []string{"ip", "ip6"} {
		for _, words := range [][]string{{"delete", "table"}, {"flush", "table"}} {
			args := append([]string{"nft"}, append(words, family, "worknode-proxy")...)
			if err := s.bed.Command("node", args...).Run(); err == nil {
				s.t.Errorf("%v: the kernel let it happen", args)
			}
		}
	}
}

// lasting are connections that live through it all.
type lasting struct {
	s      *stage
	tcp    []*bed.Flow
	steady []*bed.Flow // UDP, to endpoints that stay: none of its datagrams is lost
	moving []*bed.Flow // UDP, to endpoints that change: it is answered, by somebody
}

func newLasting(s *stage) *lasting {
	l := &lasting{s: s}
	add := func(list *[]*bed.Flow, from, to, proto string) {
		twice(packet(from, to, proto), func(p bed.Packet) {
			f, _, err := s.bed.Open(p)
			if err != nil {
				s.t.Fatalf("%s: %v", p, err)
			}
			*list = append(*list, f)
		})
	}
	for _, to := range []string{"172.30.0.61:80", "172.30.0.62:80", "172.30.0.63:80"} {
		add(&l.tcp, bed.PodIP, to, "tcp")
		add(&l.tcp, bed.NodeIP, to, "tcp")
		add(&l.tcp, bed.Outside, to, "tcp")
	}
	add(&l.tcp, bed.Outside, bed.NodeIP+":3001", "tcp")
	add(&l.tcp, bed.Outside, "1.2.3.4:80", "tcp")
	add(&l.steady, bed.PodIP, "172.30.0.63:53", "udp")
	add(&l.steady, bed.NodeIP, "172.30.0.63:53", "udp")
	add(&l.moving, bed.PodIP, "172.30.0.64:53", "udp")
	add(&l.moving, bed.NodeIP, "172.30.0.64:53", "udp")
	return l
}

func (l *lasting) check() {
	l.s.t.Helper()
	for _, f := range append(append([]*bed.Flow{}, l.tcp...), l.steady...) {
		if _, err := f.Again(5 * time.Second); err != nil {
			l.s.t.Errorf("%s: a connection that was there before the storm broke: %v", f.Packet, err)
		}
	}
	for _, f := range l.moving {
		// The answer of an endpoint whose flow is being cut may be lost, as datagrams may.
		var err error
		var a bed.Answer
		for range 10 {
			if a, err = f.Again(500 * time.Millisecond); err == nil {
				break
			}
		}
		if err != nil || a.At.Addr() == f.To.Addr() || a.At.Addr() == (netip.Addr{}) {
			l.s.t.Errorf("%s: the flow ended: %v %v", f.Packet, a, err)
		}
	}
}
