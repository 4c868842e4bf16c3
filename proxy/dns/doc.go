// Package dns answers names of Services for the pods of a standalone node; in a cluster it stays off, as there is a DNS of
// the cluster's own. It lives in the proxy because that process outlives the local API: names go on being answered, from
// what was last known. Other names go to the machine's resolvers, if it has any.
//
// Three files to read: zone.go (what is known), answer.go (what a name has), server.go (how it is said).
//
// Source: Kubernetes DNS-Based Service Discovery, schema 1.1.0; RFC 1035, 2308 (negative answers), 2782 (SRV), 6891 (EDNS).
package dns
