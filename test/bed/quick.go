package bed

import (
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Quick makes TCP connections as fast as a thread can: blocking system calls, no poller. One is used by one goroutine.
type Quick struct {
	Packet
	Within time.Duration // for each step of a connection
	buf    [128]byte
}

// Each calls fn with the outcome of one connection after the other, from the namespace of the client, until it answers
// false. took is the time of connect(2) alone.
func (b *Bed) Each(q *Quick, fn func(a Answer, took time.Duration, err error) bool) error {
	return b.In(Home(q.From), func() {
		for fn(q.once()) {
		}
	})
}

func (q *Quick) once() (Answer, time.Duration, error) {
	family := unix.AF_INET
	if q.To.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Answer{}, 0, err
	}
	defer unix.Close(fd)
	tv := unix.NsecToTimeval(int64(q.Within))
	for _, opt := range []int{unix.SO_SNDTIMEO, unix.SO_RCVTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, opt, &tv); err != nil {
			return Answer{}, 0, err
		}
	}
	// No TIME-WAIT: tens of thousands of connections must find a port.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return Answer{}, 0, err
	}
	// The port is chosen at connect, so that as many connections as there are ports can go to each destination.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
		return Answer{}, 0, err
	}
	if err := unix.Bind(fd, sockaddr(q.From)); err != nil {
		return Answer{}, 0, fmt.Errorf("bind %s: %w", q.From, err)
	}
	var to unix.Sockaddr = &unix.SockaddrInet4{Addr: as4(q.To.Addr()), Port: int(q.To.Port())}
	if q.To.Addr().Is6() {
		to = &unix.SockaddrInet6{Addr: q.To.Addr().As16(), Port: int(q.To.Port())}
	}
	began := time.Now()
	err = unix.Connect(fd, to)
	if err == unix.EINTR { // the Go runtime's signals; the connection goes on being made
		err = connected(fd, q.Within)
	}
	took := time.Since(began)
	if err != nil {
		return Answer{}, took, timeout(err)
	}
	n, err := unix.Read(fd, q.buf[:])
	for err == unix.EINTR {
		n, err = unix.Read(fd, q.buf[:])
	}
	if err != nil {
		return Answer{}, took, fmt.Errorf("connected, then: %w", timeout(err))
	}
	a, err := parseAnswer(string(q.buf[:n]))
	return a, took, err
}

// connected waits for a connection that is being made.
func connected(fd int, within time.Duration) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(within.Milliseconds()))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		case n == 0:
			return ErrDropped
		}
		e, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && e != 0 {
			err = unix.Errno(e)
		}
		return err
	}
}

func as4(a netip.Addr) [4]byte {
	if a.Is4() {
		return a.As4()
	}
	return [4]byte{}
}

// timeout names what blocking sockets say of an elapsed time limit.
func timeout(err error) error {
	if err == unix.EINPROGRESS || err == unix.EAGAIN {
		return ErrDropped
	}
	return kind(err)
}
