package dns

import (
	"sync"
	"time"

	"github.com/miekg/dns"
)

// question is what answers are kept by.
type question struct {
	name        string // lower case
	kind, class uint16
	signatures  bool
}

const (
	cached    = 512              // answers at most
	largeOne  = 4 << 10          // bytes; larger answers are not kept
	longestIn = 30 * time.Second // however long an answer may be kept: a node must not be the last to learn
	negative  = 5 * time.Second  // for denials that do not say
)

// cache keeps answers from elsewhere, packed: half a kilobyte each at most times. The zero value is ready.
type cache struct {
	mu  sync.Mutex
	all map[question]kept
}

type kept struct {
	packed    []byte
	at, until time.Time
}

// put keeps an answer for as long as it says.
func (c *cache) put(q question, m *dns.Msg, now time.Time) {
	life := lifetime(m)
	if life <= 0 || m.Truncated {
		return
	}
	packed, err := m.Pack()
	if err != nil || len(packed) > largeOne {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = map[question]kept{}
	}
	if len(c.all) >= cached {
		c.shrink(now)
	}
	c.all[q] = kept{packed, now, now.Add(life)}
}

// shrink makes room: for all that is over, else for any one.
func (c *cache) shrink(now time.Time) {
	var one question
	for q, k := range c.all {
		one = q
		if !now.Before(k.until) {
			delete(c.all, q)
		}
	}
	if len(c.all) >= cached {
		delete(c.all, one)
	}
}

// get returns an answer, with what is left of its time.
func (c *cache) get(q question, now time.Time) (*dns.Msg, bool) {
	c.mu.Lock()
	k, ok := c.all[q]
	c.mu.Unlock()
	m := new(dns.Msg)
	if !ok || !now.Before(k.until) || m.Unpack(k.packed) != nil {
		return nil, false
	}
	spent := uint32(now.Sub(k.at) / time.Second)
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, r := range section {
			if h := r.Header(); h.Rrtype != dns.TypeOPT {
				h.Ttl -= min(spent, h.Ttl)
			}
		}
	}
	return m, true
}

// lifetime is how long an answer may be kept: the shortest of its records; of a denial, what the SOA says.
// Source: RFC 2308, section 5.
func lifetime(m *dns.Msg) time.Duration {
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return 0
	}
	life := longestIn
	for _, r := range m.Answer {
		life = min(life, time.Duration(r.Header().Ttl)*time.Second)
	}
	if len(m.Answer) > 0 && m.Rcode == dns.RcodeSuccess {
		return life
	}
	for _, r := range m.Ns {
		if soa, ok := r.(*dns.SOA); ok {
			return min(life, time.Duration(min(soa.Hdr.Ttl, soa.Minttl))*time.Second)
		}
	}
	return min(life, negative)
}
