package bed

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Answer is what a server says of a connection or a datagram: where it arrived and where it seemed to come from.
type Answer struct{ At, From netip.AddrPort }

// Line is an Answer as it travels.
func (a Answer) line() string { return a.At.String() + " " + a.From.String() + "\n" }

func parseAnswer(text string) (a Answer, err error) {
	at, from, _ := strings.Cut(strings.TrimSpace(text), " ")
	if a.At, err = netip.ParseAddrPort(at); err == nil {
		a.From, err = netip.ParseAddrPort(from)
	}
	if err != nil {
		err = fmt.Errorf("answer %q: %w", text, err)
	}
	return a, err
}

func plain(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// Serve answers on TCP and UDP ports of all addresses that a namespace has, or of one alone: each connection gets a line
// of Answer and then its own words back, each datagram a line. It ends with Close.
func (b *Bed) Serve(ns string, addr string, ports ...uint16) error {
	for _, port := range ports {
		at := net.JoinHostPort(addr, fmt.Sprint(port))
		l, err := b.Listen(ns, at)
		if err != nil {
			return fmt.Errorf("serve in %s: %w", ns, err)
		}
		go serveTCP(l)
		if err := b.serveUDP(ns, at); err != nil {
			return fmt.Errorf("serve in %s: %w", ns, err)
		}
	}
	return nil
}

func serveTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			at, from := c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
			if _, err := c.Write([]byte(Answer{plain(at), plain(from)}.line())); err != nil {
				return
			}
			buf := make([]byte, 512)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				if _, err := c.Write(buf[:n]); err != nil {
					return
				}
			}
		}()
	}
}

// serveUDP answers from the address that the question went to, which the kernel tells beside each datagram.
func (b *Bed) serveUDP(ns, at string) (err error) {
	var c net.PacketConn
	config := net.ListenConfig{Control: func(network, _ string, raw syscall.RawConn) error {
		var err error
		if e := raw.Control(func(fd uintptr) {
			if network == "udp4" {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
				return
			}
			if err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1); err == nil {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
			}
		}); e != nil {
			return e
		}
		return err
	}}
	host, port, _ := net.SplitHostPort(at)
	for _, network := range []string{"udp4", "udp6"} {
		if a, err := netip.ParseAddr(host); err == nil && a.Is4() != (network == "udp4") {
			continue
		}
		if e := b.In(ns, func() { c, err = config.ListenPacket(context.Background(), network, net.JoinHostPort(host, port)) }); e != nil {
			return e
		}
		if err != nil {
			return err
		}
		u := c.(*net.UDPConn)
		b.onEnd(func() { u.Close() })
		go answerUDP(u)
	}
	return nil
}

func answerUDP(u *net.UDPConn) {
	buf, oob := make([]byte, 512), make([]byte, 128)
	port := u.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	for {
		_, n, _, from, err := u.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			if strings.Contains(err.Error(), "closed") {
				return
			}
			continue // an ICMP error of an earlier answer
		}
		to, source := destination(oob[:n])
		if !to.IsValid() {
			continue
		}
		_, _, _ = u.WriteMsgUDPAddrPort([]byte(Answer{netip.AddrPortFrom(to, port), plain(from)}.line()), source, from)
	}
}

// destination finds the address that a datagram was sent to, and makes the control message to answer from there.
func destination(oob []byte) (netip.Addr, []byte) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}, nil
	}
	for _, m := range msgs {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= 12:
			a := netip.AddrFrom4([4]byte(m.Data[8:12]))
			return a, unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: a.As4()})
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= 16:
			a := netip.AddrFrom16([16]byte(m.Data[:16]))
			return a, unix.PktInfo6(&unix.Inet6Pktinfo{Addr: a.As16()})
		}
	}
	return netip.Addr{}, nil
}
