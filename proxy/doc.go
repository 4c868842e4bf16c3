// Package proxy is the room that makes Services work on this node: it watches Services and EndpointSlices and keeps
// one nftables table a family in step with them, both in one transaction. Packets never pass through this process; when it
// dies, the tables stay and work on, and its successor takes them over.
//
// Five files to read first: plan/ruleset.go (the rules, as data), plan/port.go (the elements that a Service is), loop.go
// and sync.go (the actor where all arrows meet), plan/diff.go (what a change costs), act/look.go (how a restart adopts the
// tables). plan/trace.go follows a packet through the same rules that act writes.
package proxy
