package plan

import "strconv"

// Chain is a chain's name in the table. There are three kinds: those of the ruleset, which are always there; sized ones,
// one for each number of slots that something picks from, made on demand; and those of Services with session affinity.
type Chain string

// Chains of the ruleset that elements lead to. Drop is a verdict of the kernel and no chain.
const (
	Drop           Chain = "drop"
	Refuse         Chain = "refuse"     // answer that there is nobody
	External       Chain = "ext-all"    // masquerade, then FrontsAll
	ExternalLocal  Chain = "ext-loc"    // tell where the client is
	NodePort       Chain = "np-ext-all" // masquerade, then NodePortsAll
	NodePortLocal  Chain = "np-ext-loc" // tell where the client is
	sizedKinds           = "clnm"       // first letters of sized chains; see picks
	maxSizedCached       = 64
)

// sized chains are named by the map they pick from, and the number of slots.
var picks = map[byte]Set{'c': Endpoints, 'l': EndpointsLocal, 'n': NodeEndpoints, 'm': NodeEndpointsLocal}

func kindOf(s Set) byte {
	return sizedKinds[map[Set]int{Endpoints: 0, EndpointsLocal: 1, NodeEndpoints: 2, NodeEndpointsLocal: 3}[s]]
}

// sizedNames saves making the usual names again and again.
var sizedNames = func() (out [NodeEndpointsLocal + 1][maxSizedCached]Chain) {
	for s := range out {
		for n := range out[s] {
			out[s][n] = Chain(string(kindOf(Set(s))) + strconv.Itoa(n))
		}
	}
	return out
}()

// pickFrom names the chain that picks one of n slots of a map.
func pickFrom(s Set, n int) Chain {
	if n < maxSizedCached {
		return sizedNames[s][n]
	}
	return Chain(string(kindOf(s)) + strconv.Itoa(n))
}

// Sized tells which map a sized chain picks from and how many slots; ok is false for other chains.
func (c Chain) Sized() (from Set, n int, ok bool) {
	if len(c) < 2 || c[1] < '1' || c[1] > '9' {
		return 0, 0, false
	}
	from, ok = picks[c[0]]
	if !ok {
		return 0, 0, false
	}
	n, err := strconv.Atoi(string(c[1:]))
	return from, n, err == nil && n <= maxEndpoints
}
