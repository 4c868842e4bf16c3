package bed

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Packet is a question: a client at From (any port) wants Proto at To.
type Packet struct {
	From  netip.Addr
	To    netip.AddrPort
	Proto string // tcp, udp or sctp
}

func (p Packet) String() string { return fmt.Sprintf("%s -> %s/%s", p.From, p.To, p.Proto) }

// Twin is the same packet over IPv6.
func (p Packet) Twin() Packet {
	return Packet{Twin(p.From), netip.AddrPortFrom(Twin(p.To.Addr()), p.To.Port()), p.Proto}
}

// Errors that Ask distinguishes.
var (
	ErrRefused = errors.New("refused")
	ErrDropped = errors.New("no answer")
)

// Ask sends one packet (or connects) and tells who answered. An answer or a refusal ends the waiting at once.
// Errors: ErrRefused, ErrDropped when nothing came in time, or what else went wrong.
func (b *Bed) Ask(p Packet, within time.Duration) (a Answer, err error) {
	if e := b.In(Home(p.From), func() { a, err = ask(p, within) }); e != nil {
		return a, e
	}
	return a, err
}

// ask is Ask in the namespace of the calling thread.
func ask(p Packet, within time.Duration) (Answer, error) {
	if p.Proto == "sctp" {
		return askSCTP(p, within)
	}
	c, err := dial(p.Proto, p.From, p.To, within)
	if err != nil {
		return Answer{}, kind(err)
	}
	defer c.Close()
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // no TIME-WAIT: tens of thousands of connections must find a port
	}
	return hear(c, within)
}

// hear reads an Answer, for which UDP has to be asked.
func hear(c net.Conn, within time.Duration) (Answer, error) {
	if _, udp := c.(*net.UDPConn); udp {
		_, err := c.Write([]byte("?"))
		if errors.Is(err, unix.EPERM) { // discarded on the way out of this very node; what else there is to say follows
			within, err = min(within, silence), nil
		}
		if err != nil {
			return Answer{}, kind(err)
		}
	}
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		return Answer{}, err
	}
	buf := make([]byte, 256)
	n, err := c.Read(buf)
	if err != nil {
		return Answer{}, kind(err)
	}
	return parseAnswer(string(buf[:n]))
}

// Flow is one connection, or one UDP socket, that lives on: a client that asks again and again from the same port.
type Flow struct {
	Packet
	c net.Conn
}

// Open begins a flow; the first answer is read.
func (b *Bed) Open(p Packet) (*Flow, Answer, error) {
	c, err := b.Dial(p.Proto, p.From, p.To, patience)
	if err != nil {
		return nil, Answer{}, kind(err)
	}
	b.onEnd(func() { c.Close() })
	a, err := hear(c, patience)
	return &Flow{p, c}, a, err
}

// Again asks once more. The answer of a TCP flow is its own word, so all it tells is that the flow lives.
func (f *Flow) Again(within time.Duration) (Answer, error) {
	if f.Proto == "udp" {
		return hear(f.c, within)
	}
	if err := f.c.SetDeadline(time.Now().Add(within)); err != nil {
		return Answer{}, err
	}
	if _, err := f.c.Write([]byte("again")); err != nil {
		return Answer{}, kind(err)
	}
	_, err := io.ReadFull(f.c, make([]byte, len("again")))
	return Answer{}, err
}

func kind(err error) error {
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return ErrRefused
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ErrDropped
	}
	var t net.Error
	if errors.As(err, &t) && t.Timeout() {
		return ErrDropped
	}
	return err
}

// Outcome is what became of a packet: one of Reached (by one of the endpoints), Refused, Dropped.
type Outcome struct {
	Reached    []netip.AddrPort // every one of these gets some, and nobody else
	Masquerade bool             // the endpoint does not see the client's address
	AnySource  bool             // whatever the endpoint sees is right
	Refused    bool
	Dropped    bool
	Sticky     bool // one of Reached gets all
}

// Twin is the outcome of a Packet's twin.
func (o Outcome) Twin() Outcome {
	out := o
	out.Reached = nil
	for _, a := range o.Reached {
		out.Reached = append(out.Reached, netip.AddrPortFrom(Twin(a.Addr()), a.Port()))
	}
	return out
}

func (o Outcome) String() string {
	switch {
	case o.Refused:
		return "refused"
	case o.Dropped:
		return "dropped"
	}
	var s []string
	for _, a := range o.Reached {
		s = append(s, a.String())
	}
	text := strings.Join(s, " ")
	if o.Masquerade {
		text += " masqueraded"
	}
	if o.Sticky {
		text += " sticky"
	}
	return text
}

const (
	patience = 5 * time.Second        // for an answer that should come
	silence  = 300 * time.Millisecond // without an answer that should not come
	atLeast  = 10                     // questions, to see that nobody else answers
	atMost   = 200                    // questions, to see everyone answer
)

// Expect asks until it is certain that p comes to want. It answers what was seen otherwise.
func (b *Bed) Expect(p Packet, want Outcome) (err error) {
	if e := b.In(Home(p.From), func() { err = expect(p, want) }); e != nil {
		return e
	}
	return err
}

func expect(p Packet, want Outcome) error {
	if want.Refused || want.Dropped {
		wait, hope := patience, ErrRefused
		if want.Dropped {
			wait, hope = silence, ErrDropped
		}
		a, err := ask(p, wait)
		switch {
		case err == nil && a.At == p.To:
			return fmt.Errorf("left as it is; want %s", want)
		case err == nil:
			return fmt.Errorf("reaches %s; want %s", a.At, want)
		case !errors.Is(err, hope):
			return fmt.Errorf("%w; want %s", err, want)
		}
		return nil
	}
	got := map[netip.AddrPort]int{}
	for n := 0; n < atLeast || !want.Sticky && len(got) < len(want.Reached); n++ {
		if n == atMost {
			return fmt.Errorf("reaches only %v in %d tries; want %s", got, n, want)
		}
		a, err := ask(p, patience)
		if err != nil {
			return fmt.Errorf("%w; want %s", err, want)
		}
		if err := want.allows(p, a); err != nil {
			return err
		}
		got[a.At]++
	}
	if want.Sticky && len(got) > 1 {
		return fmt.Errorf("reaches %v; want one of them alone", got)
	}
	return nil
}

// allows checks one answer.
func (o Outcome) allows(p Packet, a Answer) error {
	known := false
	for _, r := range o.Reached {
		known = known || r == a.At
	}
	switch {
	case !known && a.At == p.To:
		return fmt.Errorf("left as it is; want %s", o)
	case !known:
		return fmt.Errorf("reaches %s; want %s", a.At, o)
	case o.AnySource:
	case o.Masquerade && a.From.Addr() == p.From:
		return fmt.Errorf("reaches %s with its own source; want it masqueraded", a.At)
	case !o.Masquerade && a.From.Addr() != p.From:
		return fmt.Errorf("reaches %s masqueraded as %s; want its own source", a.At, a.From.Addr())
	}
	return nil
}
