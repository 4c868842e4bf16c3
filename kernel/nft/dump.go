package nft

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// dumpTries bounds how often a dump is repeated because somebody changed the tables meanwhile.
const dumpTries = 20

// Request sends one message of any nfnetlink subsystem and gives each answer's attributes to each. With dump set it
// asks for all objects; answers that a concurrent change made inconsistent are asked for again, and reset is called
// before. body appends the request's attributes; it may be nil.
// Errors: the errno, with the kind it maps to.
func (c *Conn) Request(subsys, typ uint8, fam Family, dump bool, body func(*Request), reset func(), each func([]byte)) error {
	for range dumpTries {
		if reset != nil {
			reset()
		}
		again, err := c.request(uint16(subsys)<<8|uint16(typ), fam, dump, body, each)
		if !again {
			return err
		}
	}
	return fault.New(fault.Temporary, "the tables changed during each of %d dumps", dumpTries)
}

// Change is Request for a message that makes something: flags say how (unix.NLM_F_CREATE and others).
func (c *Conn) Change(subsys, typ uint8, fam Family, flags uint16, body func(*Request)) error {
	_, err := c.exchange(uint16(subsys)<<8|uint16(typ), fam, flags|unix.NLM_F_ACK, body, func([]byte) {})
	return err
}

// Request is the body of a message being built; see Conn.Request.
type Request struct{ encoder }

// Bytes appends a plain attribute.
func (r *Request) Bytes(typ uint16, v []byte) { r.bytes(typ, v) }

// Uint32 appends a number in network order.
func (r *Request) Uint32(typ uint16, v uint32) { r.u32(typ, v) }

// Nest appends an attribute that holds the attributes inside writes.
func (r *Request) Nest(typ uint16, inside func()) {
	at := r.open(typ)
	inside()
	r.close(at)
}

func (c *Conn) request(typ uint16, fam Family, dump bool, body func(*Request), each func([]byte)) (again bool, err error) {
	flags := uint16(unix.NLM_F_ACK)
	if dump {
		flags = unix.NLM_F_DUMP
	}
	return c.exchange(typ, fam, flags, body, each)
}

func (c *Conn) exchange(typ uint16, fam Family, flags uint16, body func(*Request), each func([]byte)) (again bool, err error) {
	var r Request
	at := r.header(typ, flags, 1, fam, 0)
	if body != nil {
		body(&r)
	}
	r.finish(at)

	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.send(r.b); err != nil {
		return errors.Is(err, unix.EINTR), err
	}
	var errno unix.Errno
	var text string
	done := false
	err = c.drain(make([]byte, 64<<10), func(m message) bool {
		again = again || m.flags&unix.NLM_F_DUMP_INTR != 0
		switch m.typ {
		case unix.NLMSG_ERROR, unix.NLMSG_DONE:
			done = true
			if e, t := m.refusal(); errno == 0 && len(m.body) >= 4 {
				errno, text = e, t
			}
		default:
			if len(m.body) >= 4 {
				each(m.body[4:]) // behind nfgenmsg
			}
		}
		return true
	})
	switch {
	case errno == unix.EINTR || again:
		return true, nil
	case errno != 0 && text != "":
		return false, fault.As(kindOf(errno), fmt.Errorf("%w: %s", errno, text))
	case errno != 0:
		return false, fault.As(kindOf(errno), errno)
	case err != nil:
		return false, err
	case !done:
		return false, fault.New(fault.Temporary, "the kernel's answer has no end")
	}
	return false, nil
}

// Table is what the kernel says of a table.
type Table struct {
	Flags   uint32
	Owner   uint32 // netlink port of the owner; zero if none lives
	Comment string
}

// Table looks a table up. Errors: NotFound.
func (c *Conn) Table(fam Family, name string) (Table, error) {
	var t Table
	err := c.get(unix.NFT_MSG_GETTABLE, fam, false, func(r *Request) { r.str(unix.NFTA_TABLE_NAME, name) }, nil, func(b []byte) {
		Attrs(b, func(a Attr) {
			switch a.Type {
			case unix.NFTA_TABLE_FLAGS:
				t.Flags = a.be32()
			case 7: // NFTA_TABLE_OWNER (kernel 5.12)
				t.Owner = a.be32()
			case tableUserdata:
				t.Comment = commentText(a.Data)
			}
		})
	})
	if err != nil {
		return t, fmt.Errorf("nftables: get table %s: %w", name, err)
	}
	return t, nil
}

// Sets returns the names of the table's sets and maps, anonymous ones included.
func (c *Conn) Sets(fam Family, table string) ([]string, error) {
	var out []string
	err := c.get(unix.NFT_MSG_GETSET, fam, true,
		func(r *Request) { r.str(unix.NFTA_SET_TABLE, table) },
		func() { out = out[:0] },
		func(b []byte) {
			Attrs(b, func(a Attr) {
				if a.Type == unix.NFTA_SET_NAME {
					out = append(out, a.str())
				}
			})
		})
	if err != nil {
		return nil, fmt.Errorf("nftables: list sets of table %s: %w", table, err)
	}
	return out, nil
}

// Chains returns the table's chains with the number of rules in each.
func (c *Conn) Chains(fam Family, table string) (map[string]int, error) {
	out := map[string]int{}
	err := c.get(unix.NFT_MSG_GETCHAIN, fam, true, nil, func() { clear(out) }, func(b []byte) {
		in, name := "", ""
		Attrs(b, func(a Attr) {
			switch a.Type {
			case unix.NFTA_CHAIN_TABLE:
				in = a.str()
			case unix.NFTA_CHAIN_NAME:
				name = a.str()
			}
		})
		if in == table {
			out[name] = 0
		}
	})
	if err != nil {
		return nil, fmt.Errorf("nftables: list chains of table %s: %w", table, err)
	}
	rules := map[string]int{}
	err = c.get(unix.NFT_MSG_GETRULE, fam, true,
		func(r *Request) { r.str(unix.NFTA_RULE_TABLE, table) },
		func() { clear(rules) },
		func(b []byte) {
			in, chain := "", ""
			Attrs(b, func(a Attr) {
				switch a.Type {
				case unix.NFTA_RULE_TABLE:
					in = a.str()
				case unix.NFTA_RULE_CHAIN:
					chain = a.str()
				}
			})
			if in == table {
				rules[chain]++
			}
		})
	if err != nil {
		return nil, fmt.Errorf("nftables: list rules of table %s: %w", table, err)
	}
	for name, n := range rules {
		out[name] = n
	}
	return out, nil
}

// Rules gives each rule of the table to each: its chain and its comment, in the order of the chain. reset is called before a
// repeated dump.
func (c *Conn) Rules(fam Family, table string, reset func(), each func(chain, comment string)) error {
	err := c.get(unix.NFT_MSG_GETRULE, fam, true,
		func(r *Request) { r.str(unix.NFTA_RULE_TABLE, table) }, reset,
		func(b []byte) {
			in, chain, comment := "", "", ""
			Attrs(b, func(a Attr) {
				switch a.Type {
				case unix.NFTA_RULE_TABLE:
					in = a.str()
				case unix.NFTA_RULE_CHAIN:
					chain = a.str()
				case unix.NFTA_RULE_USERDATA:
					comment = commentText(a.Data)
				}
			})
			if in == table {
				each(chain, comment)
			}
		})
	if err != nil {
		return fmt.Errorf("nftables: list rules of table %s: %w", table, err)
	}
	return nil
}

// mostDumps bounds how often a set is dumped until two dumps agree.
const mostDumps = 8

// Elems gives each element of a set to each; the element's slices are valid during the call only. reset is called
// before a repeated dump, and every set is dumped twice at least: while the kernel resizes a set's hash table, just after
// a large change, a dump may miss elements and does not say so (seen on 6.18).
// Errors: NotFound if the set or its table is not there; Temporary if it changes all the time.
func (c *Conn) Elems(fam Family, table, set string, reset func(), each func(Elem)) error {
	last := -1
	for range mostDumps {
		count := 0
		if last >= 0 && reset != nil {
			reset()
		}
		again := func() {
			count = 0
			if reset != nil {
				reset()
			}
		}
		if err := c.elems(fam, table, set, again, func(e Elem) { count++; each(e) }); err != nil {
			return fmt.Errorf("nftables: dump set %s of table %s: %w", set, table, err)
		}
		if count == last {
			return nil
		}
		last = count
	}
	return fault.New(fault.Temporary, "nftables: dump set %s of table %s: no two of %d dumps agree", set, table, mostDumps)
}

// Glance is Elems with one dump only: it may miss elements, but does for sets that change all the time.
func (c *Conn) Glance(fam Family, table, set string, reset func(), each func(Elem)) error {
	if err := c.elems(fam, table, set, reset, each); err != nil {
		return fmt.Errorf("nftables: dump set %s of table %s: %w", set, table, err)
	}
	return nil
}

func (c *Conn) elems(fam Family, table, set string, reset func(), each func(Elem)) error {
	return c.get(unix.NFT_MSG_GETSETELEM, fam, true, func(r *Request) {
		r.str(unix.NFTA_SET_ELEM_LIST_TABLE, table)
		r.str(unix.NFTA_SET_ELEM_LIST_SET, set)
	}, reset, func(b []byte) {
		Attrs(b, func(a Attr) {
			if a.Type == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				Attrs(a.Data, func(a Attr) { each(decodeElem(a.Data)) })
			}
		})
	})
}

func decodeElem(b []byte) Elem {
	var e Elem
	Attrs(b, func(a Attr) {
		switch a.Type {
		case unix.NFTA_SET_ELEM_KEY:
			Attrs(a.Data, func(a Attr) { e.Key = a.Data })
		case setElemKeyEnd:
			Attrs(a.Data, func(a Attr) { e.KeyEnd = a.Data })
		case unix.NFTA_SET_ELEM_DATA:
			Attrs(a.Data, func(a Attr) {
				if a.Type == unix.NFTA_DATA_VALUE {
					e.Data = a.Data
					return
				}
				e.Verdict = &Verdict{}
				Attrs(a.Data, func(a Attr) {
					switch a.Type {
					case unix.NFTA_VERDICT_CODE:
						e.Verdict.Code = int32(a.be32())
					case unix.NFTA_VERDICT_CHAIN:
						e.Verdict.Chain = a.str()
					}
				})
			})
		}
	})
	return e
}

func (c *Conn) get(typ uint8, fam Family, dump bool, body func(*Request), reset func(), each func([]byte)) error {
	return c.Request(unix.NFNL_SUBSYS_NFTABLES, typ, fam, dump, body, reset, each)
}
