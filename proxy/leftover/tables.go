package leftover

import (
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/nft"
)

// upstreamTable is kube-proxy's table in its nftables mode. Source: Kubernetes 1.37 pkg/proxy/nftables.
const upstreamTable = "kube-proxy"

// Tables removes kube-proxy's nftables tables. Safe to repeat. Errors: Denied without CAP_NET_ADMIN.
func Tables(conn *nft.Conn) error {
	var errs []error
	for _, fam := range []nft.Family{nft.IPv4, nft.IPv6} {
		_, err := conn.Table(fam, upstreamTable)
		if fault.Is(err, fault.NotFound) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue
		}
		if err == nil {
			b := nft.NewBatch(fam, upstreamTable)
			b.DelTable()
			err = conn.Commit(b)
		}
		switch {
		case err == nil:
			slog.Info("removed kube-proxy's nftables table", "family", fam)
		case !fault.Is(err, fault.NotFound):
			errs = append(errs, fmt.Errorf("remove kube-proxy's nftables table: %w", err))
		}
	}
	return errors.Join(errs...)
}
