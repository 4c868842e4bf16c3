package nft

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// OwnedTables tells whether this kernel knows tables that are owned by a socket and outlive it (6.9). It asks by a
// transaction that is never committed.
func (c *Conn) OwnedTables(fam Family) bool {
	b := NewBatch(fam, probeTable)
	b.AddTable(FlagOwner|FlagPersist, "")
	b.ask()
	return !fault.Is(c.run(b), fault.Unsupported)
}

// Watch calls changed whenever somebody else than the Conn with netlink port own changes the table, or might have
// done so while messages were lost. It returns when ctx ends. It is meant for tables without an owner: for others
// there is nothing to hear. The socket belongs to the network namespace of the calling thread.
func Watch(ctx context.Context, table string, own uint32, changed func()) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("nftables: open netlink socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "nftables events")
	defer f.Close()
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}); err != nil {
		return fmt.Errorf("nftables: listen to changes: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	buf := make([]byte, 16<<10)
	for {
		n, err := f.Read(buf)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, unix.ENOBUFS) {
			changed()
			continue
		}
		if err != nil {
			return fmt.Errorf("nftables: read changes: %w", err)
		}
		foreign := false
		split(buf[:n], func(m message) bool {
			if m.port == own || len(m.body) < 4 || m.typ>>8 != unix.NFNL_SUBSYS_NFTABLES || m.typ&0xff == unix.NFT_MSG_NEWGEN {
				return true
			}
			// Attribute 1 is the table's name in messages on tables, chains, rules, sets and elements alike.
			Attrs(m.body[4:], func(a Attr) { foreign = foreign || a.Type == unix.NFTA_TABLE_NAME && a.str() == table })
			return true
		})
		if foreign {
			changed()
		}
	}
}
