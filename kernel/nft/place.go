package nft

import "golang.org/x/sys/unix"

// Local goes on only if the destination is an address of this machine, on whatever device. It overwrites reg.
// Source: linux nf_tables.h, enum nft_fib_result and nft_fib_flags; rtnetlink.h, RTN_LOCAL. Needs: CONFIG_NFT_FIB_IPV4/6.
func Local(reg Reg) []Expr {
	return []Expr{
		{"fib", func(e *encoder) {
			e.u32(unix.NFTA_FIB_DREG, uint32(reg))
			e.u32(unix.NFTA_FIB_RESULT, unix.NFT_FIB_RESULT_ADDRTYPE)
			e.u32(unix.NFTA_FIB_FLAGS, unix.NFTA_FIB_F_DADDR)
		}},
		Equal(reg, Host32(unix.RTN_LOCAL)),
	}
}

// InDevice and OutDevice load the index of the device that the packet came by, or leaves by, in host order. A packet
// that has no such device ends the rule. InDevice in postrouting needs kernel 5.7.
func InDevice(reg Reg) Expr  { return meta(unix.NFT_META_IIF, reg) }
func OutDevice(reg Reg) Expr { return meta(unix.NFT_META_OIF, reg) }
