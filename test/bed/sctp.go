package bed

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// SCTP is spoken through raw sockets, as a kernel without SCTP still tracks and translates it: the client sends an INIT
// chunk, the server an INIT ACK whose cookie is the Answer.

const (
	chunkInit    = 1
	chunkInitAck = 2
	paramCookie  = 7
	headerLen    = 12
	initLen      = 20
)

// sctp makes a packet with one INIT or INIT ACK chunk. Source: RFC 9260, sections 3.1 to 3.3.3.
func sctp(kind byte, from, to uint16, verify, tag uint32, cookie string) []byte {
	for len(cookie)%4 != 0 {
		cookie += " "
	}
	n := headerLen + initLen
	if cookie != "" {
		n += 4 + len(cookie)
	}
	p := make([]byte, n)
	binary.BigEndian.PutUint16(p[0:], from)
	binary.BigEndian.PutUint16(p[2:], to)
	binary.BigEndian.PutUint32(p[4:], verify)
	c := p[headerLen:]
	c[0] = kind
	binary.BigEndian.PutUint16(c[2:], uint16(len(c)))
	binary.BigEndian.PutUint32(c[4:], tag)
	binary.BigEndian.PutUint32(c[8:], 64<<10)
	binary.BigEndian.PutUint16(c[12:], 1)
	binary.BigEndian.PutUint16(c[14:], 1)
	binary.BigEndian.PutUint32(c[16:], tag)
	if cookie != "" {
		binary.BigEndian.PutUint16(c[initLen:], paramCookie)
		binary.BigEndian.PutUint16(c[initLen+2:], uint16(4+len(cookie)))
		copy(c[initLen+4:], cookie)
	}
	binary.LittleEndian.PutUint32(p[8:], crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
	return p
}

func rawSCTP(six bool, wait time.Duration) (int, error) {
	family := unix.AF_INET
	if six {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return -1, fmt.Errorf("raw socket: %w", err)
	}
	tv := unix.NsecToTimeval(int64(wait))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

// strip takes the IP header off, which raw sockets deliver over IPv4 alone.
func strip(b []byte, six bool) []byte {
	if !six && len(b) > 20 {
		b = b[int(b[0]&15)*4:]
	}
	if len(b) < headerLen+initLen {
		return nil
	}
	return b
}

// askSCTP is ask in the namespace of the calling thread. A refusal reaches all raw sockets of a namespace that are connected
// to the same address, whatever the port: do not ask for two things of one address at a time if one is refused.
func askSCTP(p Packet, within time.Duration) (Answer, error) {
	six := p.To.Addr().Is6()
	fd, err := rawSCTP(six, within)
	if err != nil {
		return Answer{}, err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, sockaddr(p.From)); err != nil {
		return Answer{}, fmt.Errorf("bind %s: %w", p.From, err)
	}
	if err := unix.Connect(fd, sockaddr(p.To.Addr())); err != nil {
		return Answer{}, kind(err)
	}
	from := uint16(20_000 + rand.N(40_000))
	if _, err := unix.Write(fd, sctp(chunkInit, from, p.To.Port(), 0, rand.Uint32()|1, "")); err != nil {
		return Answer{}, kind(err)
	}
	buf := make([]byte, 1024)
	for deadline := time.Now().Add(within); ; {
		n, err := unix.Read(fd, buf)
		switch {
		case err == unix.EAGAIN || time.Now().After(deadline):
			return Answer{}, ErrDropped
		case err != nil:
			return Answer{}, kind(err)
		}
		b := strip(buf[:n], six)
		if b == nil || binary.BigEndian.Uint16(b[2:]) != from || b[headerLen] != chunkInitAck || len(b) < headerLen+initLen+4 {
			continue // another client's
		}
		return parseAnswer(string(b[headerLen+initLen+4:]))
	}
}

// ServeSCTP answers INIT chunks to any address and port of a namespace until Close.
func (b *Bed) ServeSCTP(ns string) error {
	for _, six := range []bool{false, true} {
		var fd int
		var err error
		if e := b.In(ns, func() {
			if fd, err = rawSCTP(six, 100*time.Millisecond); err == nil && six {
				err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
			}
		}); e != nil {
			return e
		}
		if err != nil {
			return fmt.Errorf("serve SCTP in %s: %w", ns, err)
		}
		stop, stopped := make(chan struct{}), make(chan struct{})
		b.onEnd(func() { close(stop); <-stopped; unix.Close(fd) })
		go func() {
			defer close(stopped)
			for {
				select {
				case <-stop:
					return
				default:
					answerSCTP(fd, six)
				}
			}
		}()
	}
	return nil
}

// answerSCTP waits a moment for one INIT and answers it.
func answerSCTP(fd int, six bool) {
	buf, oob := make([]byte, 1024), make([]byte, 128)
	n, k, _, peer, err := unix.Recvmsg(fd, buf, oob, 0)
	if err != nil {
		return
	}
	var at, from netip.Addr
	var control []byte
	if six {
		at, control = destination(oob[:k])
		from = netip.AddrFrom16(peer.(*unix.SockaddrInet6).Addr)
	} else {
		at, from = netip.AddrFrom4([4]byte(buf[16:20])), netip.AddrFrom4([4]byte(buf[12:16]))
		control = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: at.As4()})
	}
	p := strip(buf[:n], six)
	if p == nil || p[headerLen] != chunkInit || !at.IsValid() {
		return
	}
	source, port := binary.BigEndian.Uint16(p), binary.BigEndian.Uint16(p[2:])
	tag := binary.BigEndian.Uint32(p[headerLen+4:])
	line := Answer{netip.AddrPortFrom(at, port), netip.AddrPortFrom(from, source)}.line()
	_, _ = unix.SendmsgN(fd, sctp(chunkInitAck, port, source, tag, rand.Uint32()|1, line), control, sockaddr(from), 0)
}
