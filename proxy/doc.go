// Package proxy is the room that makes Services work on this node: it watches Services and EndpointSlices and keeps
// one nftables table in step with them. Packets never pass through this process; when it dies, the table stays and
// works on, and its successor takes it over.
//
// Five files to read first: plan/model.go (what is in the table), act/rules.go (the rules that use it), loop.go (the
// actor where all arrows meet), plan/diff.go (what a change costs), act/look.go (how a restart adopts the table).
package proxy
