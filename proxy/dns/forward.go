package dns

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

const (
	forwardTimeout = 2 * time.Second // for one resolver
	atOnce         = 128             // questions that wait for resolvers; more are refused, so that nothing piles up
	reread         = time.Second     // how old our reading of the file may be
)

// forwarder asks the machine's resolvers for names that are not ours.
type forwarder struct {
	file  string
	cache cache
	same  singleflight.Group // one question asked by many is asked once
	busy  chan struct{}

	mu      sync.Mutex
	read    time.Time // when the file was looked at
	changed time.Time // what it says of itself
	all     []netip.AddrPort
	self    []netip.AddrPort
	probes  map[string]netip.AddrPort // names that only we know, each asked of one resolver
	loops   map[netip.AddrPort]bool
	first   int // the resolver that answered last
}

func newForwarder(file string) *forwarder {
	return &forwarder{file: file, busy: make(chan struct{}, atOnce), probes: map[string]netip.AddrPort{}, loops: map[netip.AddrPort]bool{}}
}

// avoid names an address that is our own: a resolver there would ask itself.
func (f *forwarder) avoid(self netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.self = append(f.self, self)
	f.read = time.Time{}
}

// any tells whether there is anybody to ask.
func (f *forwarder) any() bool { return len(f.resolvers()) > 0 }

// resolvers are those of the file as it is now, but for those that lead back here. The one that answered last is first.
func (f *forwarder) resolvers() []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); f.file != "" && now.Sub(f.read) > reread {
		f.read = now
		if st, err := os.Stat(f.file); err == nil && !st.ModTime().Equal(f.changed) {
			if text, err := os.ReadFile(f.file); err == nil {
				f.changed, f.all, f.first = st.ModTime(), nameservers(string(text)), 0
			}
		}
	}
	out := make([]netip.AddrPort, 0, len(f.all))
	for i := range f.all {
		one := f.all[(f.first+i)%len(f.all)]
		if !f.loops[one] && !slices.Contains(f.self, one) {
			out = append(out, one)
		}
	}
	return out
}

func (f *forwarder) answered(by netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := slices.Index(f.all, by); i >= 0 {
		f.first = i
	}
}

// nameservers reads resolv.conf. Scoped addresses keep their zone. Source: resolv.conf(5).
func nameservers(text string) (all []netip.AddrPort) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "nameserver" {
			if a, err := netip.ParseAddr(f[1]); err == nil {
				all = append(all, netip.AddrPortFrom(a.Unmap(), 53))
			}
		}
	}
	return all
}

// resolve answers q from elsewhere. reply is its empty answer, for when there is none.
func (f *forwarder) resolve(q, reply *dns.Msg) *dns.Msg {
	resolvers := f.resolvers()
	if len(resolvers) == 0 {
		reply.Rcode = dns.RcodeNameError // an island: no name outside exists, and saying so at once spares everybody a time-out
		return reply
	}
	ask := question{strings.ToLower(q.Question[0].Name), q.Question[0].Qtype, q.Question[0].Qclass, wantsSignatures(q)}
	far, ok := f.cache.get(ask, time.Now())
	if !ok {
		got, err, _ := f.same.Do(fmt.Sprint(ask), func() (any, error) { return f.ask(ask, resolvers) })
		if err != nil {
			slog.Debug("name not resolved", "name", ask.name, "err", err)
			reply.Rcode = dns.RcodeServerFailure
			return reply
		}
		far = got.(*dns.Msg).Copy() // others have it too
	}
	// The answer is another's, its form is ours: number, question and spelling are the asker's.
	reply.Rcode = far.Rcode
	reply.RecursionAvailable, reply.AuthenticatedData = true, far.AuthenticatedData
	reply.Answer, reply.Ns = far.Answer, far.Ns
	for _, r := range far.Extra {
		if r.Header().Rrtype != dns.TypeOPT { // that was between the two of us
			reply.Extra = append(reply.Extra, r)
		}
	}
	return reply
}

// ask asks one resolver after the other, over TCP what does not fit into a datagram.
func (f *forwarder) ask(ask question, resolvers []netip.AddrPort) (*dns.Msg, error) {
	select {
	case f.busy <- struct{}{}:
		defer func() { <-f.busy }()
	default:
		return nil, fmt.Errorf("%d questions wait already", atOnce)
	}
	q := new(dns.Msg).SetQuestion(ask.name, ask.kind)
	q.Question[0].Qclass = ask.class
	q.SetEdns0(largest, ask.signatures)
	var last error
	for _, resolver := range resolvers {
		answer, err := exchange(q, resolver)
		switch {
		case err != nil:
			last = err
			continue
		case answer.Rcode == dns.RcodeServerFailure || answer.Rcode == dns.RcodeRefused || answer.Rcode == dns.RcodeFormatError || answer.Rcode == dns.RcodeNotImplemented:
			last = fmt.Errorf("%s answers %s", resolver, dns.RcodeToString[answer.Rcode])
			continue
		}
		f.answered(resolver)
		f.cache.put(ask, answer, time.Now())
		return answer, nil
	}
	return nil, last
}

func exchange(q *dns.Msg, resolver netip.AddrPort) (*dns.Msg, error) {
	q = q.Copy()
	q.Id = dns.Id()
	client := dns.Client{Net: "udp", Timeout: forwardTimeout, UDPSize: largest}
	answer, _, err := client.Exchange(q, resolver.String())
	if err == nil && answer.Truncated {
		client.Net = "tcp"
		answer, _, err = client.Exchange(q, resolver.String())
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", resolver, err)
	}
	return answer, nil
}

// probe finds resolvers that ask us in turn, as happens when the machine's resolv.conf names the node's own DNS by some
// way: each is asked for a name that only we know, and if that question arrives here, the resolver is left out.
func (f *forwarder) probe(ctx context.Context) {
	for _, resolver := range f.resolvers() {
		if ctx.Err() != nil {
			return
		}
		name := fmt.Sprintf("%d.%d.", rand.Uint64(), rand.Uint64())
		f.mu.Lock()
		f.probes[name] = resolver
		f.mu.Unlock()
		q := new(dns.Msg).SetQuestion(name, dns.TypeHINFO)
		_, _ = exchange(q, resolver) // the answer says nothing; that we are asked says all
		f.mu.Lock()
		delete(f.probes, name)
		f.mu.Unlock()
	}
}

// isProbe recognises a question of our own.
func (f *forwarder) isProbe(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	resolver, is := f.probes[name]
	if is && !f.loops[resolver] {
		f.loops[resolver] = true
		slog.Warn("a resolver of this machine asks us what we ask it, leaving it out; put the real resolvers into resolv.conf", "resolver", resolver)
	}
	return is
}

func wantsSignatures(q *dns.Msg) bool {
	opt := q.IsEdns0()
	return opt != nil && opt.Do()
}
