// Package nft speaks the nftables dialect of netlink: it encodes a transaction into one message, sends it, and maps
// the kernel's errors back to the operation they belong to; it dumps what a table holds, and hears of foreign changes.
// It knows nothing of Services. It is not a general nftables library: it has the expressions that this project's
// tables use, and no textual rule language.
//
// Three laws of the kernel decide its shape (docs: nfnetlink batches, net/netfilter/nfnetlink.c, linux 6.18):
//   - A batch is atomic: packets see the rules of before or of after. Either all of it happens or nothing.
//   - Every request for an acknowledgement costs receive buffer, and a batch of a few hundred overruns it. Errors come
//     back unasked, so only the last operation asks.
//   - The kernel has answered before sendmsg returns. So we never block in a read and need no timeouts.
package nft
