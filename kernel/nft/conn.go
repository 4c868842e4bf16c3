package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// Conn is one netlink socket, bound for life to the network namespace of the thread that opened it. A table with
// FlagOwner belongs to the Conn that made it: use one long-lived Conn a namespace. Safe for concurrent use.
type Conn struct {
	// Fail, if it is set, may refuse a transaction in the kernel's place: tests set it, before the first use.
	Fail func(*Batch) error

	mu   sync.Mutex // one request and its answers at a time
	fd   int
	port uint32
	room int // of the send buffer, bytes
	// answers receives what Commit gets back: each is a datagram of its own and short, as we ask for capped ones.
	answers [4096]byte
}

// Open opens a socket in the calling thread's network namespace.
// Errors: Unsupported if the kernel has no nfnetlink; Denied without CAP_NET_ADMIN only shows at the first Commit.
func Open() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		if err == unix.EPROTONOSUPPORT || err == unix.EAFNOSUPPORT {
			return nil, fault.Hint(fault.New(fault.Unsupported, "nftables: open netlink socket: %w", err),
				"this kernel lacks CONFIG_NETFILTER_NETLINK: modprobe nf_tables, or use a kernel built with CONFIG_NF_TABLES")
		}
		return nil, fmt.Errorf("nftables: open netlink socket: %w", err)
	}
	c := &Conn{fd: fd}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("nftables: bind netlink socket: %w", err)
	}
	if sa, err := unix.Getsockname(fd); err == nil {
		if nl, ok := sa.(*unix.SockaddrNetlink); ok {
			c.port = nl.Pid
		}
	}
	// Extended acknowledgements carry the kernel's own words; both options only refine errors, so a refusal is fine.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, 4<<20)
	c.grow(1 << 20)
	return c, nil
}

// Close closes the socket. Tables with FlagOwner and without FlagPersist vanish with it.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// Port is the socket's netlink address: the owner the kernel records for our tables.
func (c *Conn) Port() uint32 { return c.port }

func setBuffer(fd, force, plain, n int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, n) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, n) // without CAP_NET_ADMIN the system's limit applies
	}
}

// grow makes room for a message of n bytes: the kernel refuses one larger than the send buffer with EMSGSIZE.
func (c *Conn) grow(n int) {
	if n+4096 > c.room {
		c.room = n + n/2 + 4096
		setBuffer(c.fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, c.room)
	}
}

// Commit runs the batch as one transaction: all of it happens, or nothing. The batch is spent afterwards.
// Errors name the operation that the kernel refused and its reason; kinds are Denied (no right, or another process
// owns the table), NotFound, Exists, Busy, Unsupported, Exhausted, Temporary.
// Repeat: a failed batch has changed nothing; look at the table before building the next one.
// Crash: the kernel has the whole batch or none of it.
func (c *Conn) Commit(b *Batch) error {
	if len(b.ops) == 0 {
		return nil
	}
	b.ask()
	b.control(unix.NFNL_MSG_BATCH_END)
	return c.run(b)
}

// Check asks the kernel whether it would take the batch, which is spent afterwards: a transaction without an end is
// checked and then dropped. Errors: as Commit.
func (c *Conn) Check(b *Batch) error {
	if len(b.ops) == 0 {
		return nil
	}
	b.ask()
	return c.run(b)
}

// ask sets the acknowledgement flag on the last operation.
func (b *Batch) ask() {
	flags := b.b[b.start+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
}

func (c *Conn) run(b *Batch) error {
	if c.Fail != nil {
		if err := c.Fail(b); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.grow(len(b.b))
	if err := c.send(b.b); err != nil {
		return fmt.Errorf("nftables: table %s: send %d operations (%d bytes): %w", b.table, len(b.ops), len(b.b), err)
	}
	var first error
	done, last := false, uint32(len(b.ops)+1)
	err := c.drain(c.answers[:], func(m message) bool {
		if m.typ != unix.NLMSG_ERROR {
			return true
		}
		errno, text := m.refusal()
		if errno == 0 {
			done = done || m.seq == last
		} else if first == nil {
			first = b.refused(m.seq, errno, text)
		}
		return true
	})
	switch {
	case first != nil:
		return first
	case err != nil && !done:
		return fmt.Errorf("nftables: table %s: read answer: %w", b.table, err)
	case !done:
		return fault.New(fault.Temporary, "nftables: table %s: the kernel did not confirm %d operations", b.table, len(b.ops))
	}
	return nil
}

// refused turns the kernel's refusal of message seq into an error that names the operation.
func (b *Batch) refused(seq uint32, errno unix.Errno, text string) error {
	what, table := "commit", b.table
	if i := int(seq) - 2; i >= 0 && i < len(b.ops) {
		o := b.ops[i]
		if table = o.table; o.fam == IPv6 {
			table = "ip6 " + table
		}
		what = o.verb + " " + o.name
		if o.n > 0 {
			what += fmt.Sprintf(" (%d of them)", o.n)
		}
	}
	var err error = errno
	if text != "" {
		err = fmt.Errorf("%w: %s", errno, text)
	}
	return fault.As(kindOf(errno), fmt.Errorf("nftables: table %s: %s: %w", table, what, err))
}

func kindOf(errno unix.Errno) fault.Kind {
	switch errno {
	case unix.EPERM, unix.EACCES:
		return fault.Denied
	case unix.ENOENT:
		return fault.NotFound
	case unix.EEXIST:
		return fault.Exists
	case unix.EBUSY:
		return fault.Busy
	case unix.EOPNOTSUPP, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT:
		return fault.Unsupported
	case unix.ENOMEM, unix.ENOSPC, unix.EMFILE, unix.ENFILE:
		return fault.Exhausted
	case unix.EINTR, unix.EAGAIN, unix.ENOBUFS:
		return fault.Temporary
	}
	return fault.Unknown
}

func (c *Conn) send(b []byte) error {
	for {
		err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// message is one netlink message as read; body aliases the read buffer.
type message struct {
	typ, flags uint16
	seq, port  uint32
	body       []byte
}

// refusal decodes an error message: zero is an acknowledgement.
func (m message) refusal() (unix.Errno, string) {
	if len(m.body) < 4 {
		return unix.EPROTO, ""
	}
	errno := unix.Errno(-int32(binary.NativeEndian.Uint32(m.body)))
	text := ""
	if m.flags&unix.NLM_F_ACK_TLVS != 0 && len(m.body) >= 20 {
		skip := 20
		if m.flags&unix.NLM_F_CAPPED == 0 { // the whole refused message is quoted before the attributes
			skip = 4 + align4(int(binary.NativeEndian.Uint32(m.body[4:])))
		}
		if skip <= len(m.body) {
			Attrs(m.body[skip:], func(a Attr) {
				if a.Type == unix.NLMSGERR_ATTR_MSG {
					text = strings.TrimSpace(a.str())
				}
			})
		}
	}
	return errno, text
}

// drain reads what the kernel has answered until nothing is left or each returns false.
func (c *Conn) drain(buf []byte, each func(message) bool) error {
	for {
		n, _, err := unix.Recvfrom(c.fd, buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil:
			return err
		}
		if !split(buf[:n], each) {
			return nil
		}
	}
}

// split walks the messages of one datagram; it reports whether to go on reading.
func split(b []byte, each func(message) bool) bool {
	for len(b) >= 16 {
		n := int(binary.NativeEndian.Uint32(b))
		if n < 16 || n > len(b) {
			return true
		}
		m := message{
			typ: binary.NativeEndian.Uint16(b[4:]), flags: binary.NativeEndian.Uint16(b[6:]),
			seq: binary.NativeEndian.Uint32(b[8:]), port: binary.NativeEndian.Uint32(b[12:]), body: b[16:n],
		}
		if !each(m) {
			return false
		}
		if n = align4(n); n > len(b) {
			return true
		}
		b = b[n:]
	}
	return true
}
