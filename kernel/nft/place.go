package nft

import "golang.org/x/sys/unix"

// Local goes on only if the destination is an address of this machine, on whatever device. It overwrites reg.
// Source: linux nf_tables.h, enum nft_fib_result and nft_fib_flags; rtnetlink.h, RTN_LOCAL. Needs: CONFIG_NFT_FIB_IPV4/6.
func Local(reg Reg) []Expr { return local(reg, unix.NFTA_FIB_F_DADDR) }

// FromLocal is Local for the source.
func FromLocal(reg Reg) []Expr { return local(reg, unix.NFTA_FIB_F_SADDR) }

func local(reg Reg, which uint32) []Expr {
	return []Expr{
		{"fib", func(e *encoder) {
			e.u32(unix.NFTA_FIB_DREG, uint32(reg))
			e.u32(unix.NFTA_FIB_RESULT, unix.NFT_FIB_RESULT_ADDRTYPE)
			e.u32(unix.NFTA_FIB_FLAGS, which)
		}},
		Equal(reg, Host32(unix.RTN_LOCAL)),
	}
}

// deviceName is how much room the kernel has for a device's name, its NUL included.
const deviceName = 16

// FromDevice goes on only if the packet came by the device of that name. It overwrites four registers.
func FromDevice(name string, reg Reg) []Expr {
	return []Expr{meta(unix.NFT_META_IIFNAME, reg), Equal(reg, append([]byte(name), make([]byte, max(0, deviceName-len(name)))...))}
}

// FromDevices goes on only if the packet came by a device whose name starts with prefix. It overwrites four registers.
func FromDevices(prefix string, reg Reg) []Expr {
	return []Expr{meta(unix.NFT_META_IIFNAME, reg), Equal(reg, []byte(prefix))}
}

// InDevice and OutDevice load the index of the device that the packet came by, or leaves by, in host order. A packet
// that has no such device ends the rule. InDevice in postrouting needs kernel 5.7.
func InDevice(reg Reg) Expr  { return meta(unix.NFT_META_IIF, reg) }
func OutDevice(reg Reg) Expr { return meta(unix.NFT_META_OIF, reg) }
