package link

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// DeviceTo returns the index of the device by which the namespace sends packets to addr.
// Errors: NotFound without a route. Source: rtnetlink(7), RTM_GETROUTE for one destination.
func (h *Handle) DeviceTo(addr netip.Addr) (index int, err error) {
	what := fmt.Sprintf("find the route to %s", addr)
	fixed := make([]byte, unix.SizeofRtMsg)
	fixed[0], fixed[1] = family(addr), uint8(addr.BitLen())
	var b batch
	b.begin(what, unix.RTM_GETROUTE, 0, fixed)
	b.attr(unix.RTA_DST, addr.AsSlice())
	h.mu.Lock()
	defer h.mu.Unlock()
	seq, err := h.send(&b)
	if err != nil {
		return 0, err
	}
	for done := false; !done; {
		err := h.receive(func(m message) error {
			switch {
			case m.seq != seq:
			case m.kind == unix.NLMSG_ERROR:
				done = true
				return answer(what, m.payload, m.flags&unix.NLM_F_CAPPED != 0)
			case m.kind == unix.RTM_NEWROUTE && len(m.payload) >= unix.SizeofRtMsg:
				done = true
				attributes(m.payload[unix.SizeofRtMsg:], func(kind uint16, value []byte) {
					if kind == unix.RTA_OIF && len(value) == 4 {
						index = int(binary.NativeEndian.Uint32(value))
					}
				})
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	if index == 0 {
		return 0, fault.New(fault.NotFound, "%s: the kernel names no device", what)
	}
	return index, nil
}
