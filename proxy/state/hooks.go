package state

import (
	"net/netip"
	"time"
)

// Hooks hear what the proxy's loop has done. All are called on the loop's goroutine, in order, and must return at once.
// Any may be nil.
type Hooks struct {
	// Received is called for each change of the API as the loop takes it; what it changed is queued from then on.
	Received func(Received)
	// Committed is called after each pass that left nothing to do: the kernel has all that was queued.
	Committed func(Commit)
	// Failed is called after each pass that the kernel refused; the old rules stay in force and the pass is repeated.
	Failed func(error)
	// Node is called when the Node object has changed.
	Node func(Node)
	// Health is called after Committed when health-check node ports or their endpoints have changed, with all of them.
	Health func([]HealthPort)
	// NodePortAddrs is called when the addresses on which node ports answer have changed, with those of both families.
	NodePortAddrs func([]netip.Addr)
	// Trouble is called when an object cannot be served as it is written, and again when that changes.
	Trouble func(Trouble)
	// Cleaned is called by the conntrack cleaner, on a goroutine of its own.
	Cleaned func(Cleaned)
}

// Received is one change of the API.
type Received struct {
	Kind   string // "Service", "EndpointSlice", "Node" or "ServiceCIDR"
	Object Name
	At     time.Time
}

// Commit is one pass of the loop that succeeded.
type Commit struct {
	Began, Done  time.Time
	Full         bool // everything was compiled and compared with the kernel
	Services     int  // compiled in this pass
	Transactions int  // zero: the kernel had everything
	Elements     int  // added, replaced or removed
	Bytes        int  // of the transactions
	Replaced     int  // whole tables written anew
	Drift        int  // elements and chains that the kernel had otherwise than we left them
	// Triggers is when the endpoints of this pass changed in the cluster, where their slices say so.
	Triggers []time.Time
	// What the kernel has now.
	AllServices, AllSlices, AllEndpoints int
	NoLocal                              NoLocal
}

// NoLocal counts Services that have endpoints, but none here, and a policy that wants them here: their traffic is dropped.
type NoLocal struct{ Internal, External int }

// HealthPort is a health-check node port of a Service of type LoadBalancer with externalTrafficPolicy Local.
type HealthPort struct {
	Service Name
	Port    uint16
	Local   int // distinct addresses of ready endpoints on this node
}

// Trouble is what keeps an object from being served as it is written. An empty Reason says that it is over.
type Trouble struct {
	Kind    string // of the object: "Service" or "EndpointSlice"
	Object  Name
	Reason  string // CamelCase, as an event's reason
	Message string
}

// Cleaned is one round of the conntrack cleaner.
type Cleaned struct {
	Family  Family
	Deleted int
	Took    time.Duration
	Err     error
}
