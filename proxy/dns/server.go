package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"worknode/fault"
	"worknode/task"
)

// largest is what we send and take in one datagram: more may be cut into fragments on the way, and those get lost.
// Source: DNS flag day 2020.
const largest = 1232

// longest is how many aliases we follow.
const longest = 8

// Server answers for one zone, and hands other names on.
type Server struct {
	zone    *Zone
	forward *forwarder

	// Queries, Failures count answers, and those that are SERVFAIL.
	Queries, Failures atomic.Uint64
}

// NewServer returns a server for zone. Names outside go to the resolvers that the file lists, in the form of resolv.conf;
// an empty name means that there are none.
func NewServer(zone *Zone, resolvConf string) *Server {
	return &Server{zone: zone, forward: newForwarder(resolvConf)}
}

// Run listens on addr over UDP and TCP, in the network namespace of the process, and answers until ctx ends. While
// somebody else has the address it tries on. The zone is in memory: nothing that happens elsewhere ends the answers.
func (s *Server) Run(ctx context.Context, addr netip.AddrPort) {
	said := ""
	for ctx.Err() == nil {
		err := s.serve(ctx, addr)
		if ctx.Err() != nil {
			return
		}
		if err.Error() != said {
			said = err.Error()
			slog.Error("names of Services are not answered, trying on", "err", fault.Hint(err, "end what listens there; `ss -lunp` shows it"))
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (s *Server) serve(ctx context.Context, addr netip.AddrPort) error {
	udp, err := net.ListenPacket("udp", addr.String())
	if err != nil {
		return fmt.Errorf("DNS: %w", err)
	}
	defer udp.Close()
	tcp, err := net.Listen("tcp", addr.String())
	if err != nil {
		return fmt.Errorf("DNS: %w", err)
	}
	defer tcp.Close()
	return s.Serve(ctx, udp, tcp)
}

// Serve answers on both sockets until ctx ends or one of them fails.
func (s *Server) Serve(ctx context.Context, udp net.PacketConn, tcp net.Listener) error {
	tasks := task.New(ctx)
	s.forward.avoid(addrPort(udp.LocalAddr()))
	ended := make(chan error, 2)
	servers := map[string]*dns.Server{
		"DNS over UDP": {PacketConn: udp, Handler: s, UDPSize: largest},
		"DNS over TCP": {Listener: tcp, Handler: s, MaxTCPQueries: 128, IdleTimeout: func() time.Duration { return 10 * time.Second }},
	}
	for name, server := range servers {
		tasks.Go(name, func(context.Context) { ended <- server.ActivateAndServe() })
	}
	tasks.Go("DNS loops", s.forward.probe)
	var err error
	select {
	case <-ctx.Done():
	case err = <-ended:
	}
	for _, server := range servers {
		_ = server.Shutdown() // open connections too; one that never started has none
	}
	udp.Close()
	tcp.Close()
	tasks.Stop()
	return errors.Join(err, ctx.Err())
}

// ServeDNS answers one query.
func (s *Server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	s.Queries.Add(1)
	answer := s.answer(q)
	if answer == nil { // a loop: whoever asks is ourselves
		return
	}
	if answer.Rcode == dns.RcodeServerFailure {
		s.Failures.Add(1)
	}
	size := dns.MinMsgSize
	if opt := q.IsEdns0(); opt != nil {
		size = min(max(size, int(opt.UDPSize())), largest)
		if answer.IsEdns0() == nil {
			answer.SetEdns0(largest, false)
		}
	}
	if w.LocalAddr().Network() == "tcp" {
		size = dns.MaxMsgSize
	}
	answer.Truncate(size)
	if err := w.WriteMsg(answer); err != nil {
		slog.Debug("DNS answer not sent", "to", w.RemoteAddr(), "err", err)
	}
}

// answer is the answer before it is cut to size; nil if there must be none.
func (s *Server) answer(q *dns.Msg) *dns.Msg {
	reply := new(dns.Msg).SetReply(q)
	reply.RecursionAvailable = s.forward.any()
	switch {
	case q.Opcode != dns.OpcodeQuery:
		reply.Rcode = dns.RcodeNotImplemented
		return reply
	case len(q.Question) != 1:
		reply.Rcode = dns.RcodeFormatError
		return reply
	}
	if opt := q.IsEdns0(); opt != nil && opt.Version() != 0 {
		reply.SetEdns0(largest, false)
		reply.Rcode = dns.RcodeBadVers
		return reply
	}
	ask := q.Question[0]
	name := strings.ToLower(ask.Name)
	if s.forward.isProbe(name) {
		return nil
	}
	if ask.Qclass != dns.ClassINET && ask.Qclass != dns.ClassANY {
		reply.Rcode = dns.RcodeRefused
		return reply
	}
	if dns.IsSubDomain(s.zone.name, name) {
		s.own(reply, ask.Name, name, ask.Qtype)
		return reply
	}
	if a, ok := addressOf(name); ok {
		if records := s.zone.pointers(ask.Name, a); len(records) > 0 {
			reply.Authoritative = true
			for _, r := range records {
				if ask.Qtype == dns.TypePTR || ask.Qtype == dns.TypeANY {
					reply.Answer = append(reply.Answer, r)
				}
			}
			return reply
		}
	}
	return s.forward.resolve(q, reply)
}

// own answers from the zone: NXDOMAIN for names that are not there, an empty answer for types that they do not have.
func (s *Server) own(reply *dns.Msg, spelling, name string, kind uint16) {
	if !s.zone.ready() {
		reply.Rcode = dns.RcodeServerFailure // NXDOMAIN would be believed
		return
	}
	reply.Authoritative = true
	for range longest {
		records, known := s.zone.lookup(name)
		var alias *dns.CNAME
		for _, r := range records {
			c, isAlias := r.(*dns.CNAME)
			if h := r.Header(); h.Rrtype == kind || isAlias || kind == dns.TypeANY {
				if h.Name == name {
					h.Name = spelling // the asker's own
				}
				reply.Answer = append(reply.Answer, r)
			}
			if isAlias && kind != dns.TypeCNAME && kind != dns.TypeANY {
				alias = c
			}
		}
		if !known {
			reply.Rcode = dns.RcodeNameError
		}
		if alias == nil {
			break
		}
		spelling, name = alias.Target, alias.Target
		if !dns.IsSubDomain(s.zone.name, name) {
			s.follow(reply, name, kind)
			break
		}
	}
	if len(reply.Answer) == 0 || reply.Rcode != dns.RcodeSuccess {
		s.zone.mu.RLock()
		reply.Ns = append(reply.Ns, s.zone.soa())
		s.zone.mu.RUnlock()
	}
	s.addAddresses(reply)
	shuffle(reply.Answer)
}

// follow adds what an alias outside the zone has. Without an answer from there the alias stands alone: it is ours, what it
// points to is not.
func (s *Server) follow(reply *dns.Msg, name string, kind uint16) {
	if !s.forward.any() {
		return
	}
	q := new(dns.Msg).SetQuestion(name, kind)
	far := s.forward.resolve(q, new(dns.Msg).SetReply(q))
	if far == nil || far.Rcode == dns.RcodeServerFailure || far.Rcode == dns.RcodeRefused {
		return
	}
	reply.Answer = append(reply.Answer, far.Answer...)
	reply.Rcode = far.Rcode
}

// addAddresses saves the asker of SRV or NS the next question.
func (s *Server) addAddresses(reply *dns.Msg) {
	seen := map[string]bool{}
	for _, r := range reply.Answer {
		to := ""
		switch r := r.(type) {
		case *dns.SRV:
			to = r.Target
		case *dns.NS:
			to = r.Ns
		}
		if to == "" || seen[to] {
			continue
		}
		seen[to] = true
		records, _ := s.zone.lookup(to)
		for _, a := range records {
			if t := a.Header().Rrtype; t == dns.TypeA || t == dns.TypeAAAA {
				reply.Extra = append(reply.Extra, a)
			}
		}
	}
}

// shuffle spreads clients that take the first address. Aliases stay before what they point to.
func shuffle(all []dns.RR) {
	first := 0
	for first < len(all) && all[first].Header().Rrtype == dns.TypeCNAME {
		first++
	}
	rest := all[first:]
	for _, r := range rest {
		if t := r.Header().Rrtype; t != dns.TypeA && t != dns.TypeAAAA && t != dns.TypeSRV {
			return
		}
	}
	rand.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
}

func addrPort(a net.Addr) netip.AddrPort {
	if u, ok := a.(*net.UDPAddr); ok {
		p := u.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}
