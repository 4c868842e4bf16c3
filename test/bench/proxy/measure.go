package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"worknode/test/bed"
)

// spread is a series of durations.
type spread struct {
	p50, p99 time.Duration
	n        int
}

func spreadOf(d []time.Duration) spread {
	if len(d) == 0 {
		return spread{}
	}
	slices.Sort(d)
	return spread{d[len(d)/2], d[min(len(d)-1, len(d)*99/100)], len(d)}
}

// result is all that is known of one contestant at one size.
type result struct {
	gaveUp  string        // why the rest is missing
	cold    time.Duration // from execve to a connection through the VIP of every sampled Service
	pss     int64         // bytes, after the start
	pssEnd  int64         // after all changes
	row     spread        // endpoints written to the API → one of them answers at the VIP, changes in a row
	gap     spread        // the same, three seconds apart
	added   spread        // new Service and slice written → it answers, in a row
	cpu     time.Duration // a change of endpoints
	commit  spread        // event received → committed, by the contestant's own metric
	commitN bool
	vip     spread        // connect(2) through a VIP
	direct  spread        // connect(2) without one
	restart time.Duration // kill -9, start → the first change is in force
}

const (
	gapLength = 3 * time.Second
	within    = 2 * time.Second // for one connection
)

// measure brings a contestant up at a size, drives it and ends it.
func measure(who contestant, count int, n sizes) (r result, err error) {
	c, err := newCluster(count)
	if err != nil {
		return r, err
	}
	defer c.close()
	argv, err := who.command(c.dir)
	if err != nil {
		return r, err
	}
	began := time.Now()
	if c.process, err = start(c.bed, argv); err != nil {
		return r, err
	}
	sample := []int{0, count / 2, count - 1}
	for range 5 {
		sample = append(sample, rand.N(count))
	}
	for _, i := range sample {
		if _, err := c.until(vip(i), began.Add(n.patience), func(bed.Answer) bool { return true }); err != nil {
			if dead := c.dead(); dead != nil {
				return r, dead
			}
			r.gaveUp = fmt.Sprintf("not up after %v", n.patience)
			return r, nil
		}
	}
	r.cold = time.Since(began)
	if r.pss, err = c.pss(); err != nil {
		return r, err
	}
	before, err := readCommits(c, who)
	if err != nil {
		return r, err
	}
	cpu, err := c.cpu()
	if err != nil {
		return r, err
	}
	if r.row, err = c.series(n.changes, n.patience, 0, func() (netip.AddrPort, []runtime.Object, []netip.Addr) { return c.replacement(count) }); err != nil {
		return r, err
	}
	if r.row.n > 0 {
		after, err := c.cpu()
		if err != nil {
			return r, err
		}
		r.cpu = (after - cpu) / time.Duration(r.row.n)
	}
	after, err := readCommits(c, who)
	if err != nil {
		return r, err
	}
	r.commit, r.commitN = after.minus(before)
	if r.gap, err = c.series(n.gaps, n.patience, gapLength, func() (netip.AddrPort, []runtime.Object, []netip.Addr) { return c.replacement(count) }); err != nil {
		return r, err
	}
	fresh := added
	if r.added, err = c.series(min(n.changes/5, 250), n.patience/2, 0, func() (netip.AddrPort, []runtime.Object, []netip.Addr) {
		i := fresh
		fresh++
		s := c.slice(i)
		return vip(i), []runtime.Object{service(i), s}, addresses(s)
	}); err != nil {
		return r, err
	}
	if r.pssEnd, err = c.pss(); err != nil {
		return r, err
	}
	if r.vip, r.direct, err = c.connects(vip(count/2), n.connects); err != nil {
		return r, err
	}
	r.restart, err = c.restart(argv, count, n)
	return r, err
}

// replacement is new endpoints for some Service.
func (c *cluster) replacement(count int) (netip.AddrPort, []runtime.Object, []netip.Addr) {
	i := rand.N(count)
	s := c.slice(i)
	return vip(i), []runtime.Object{s}, addresses(s)
}

func addresses(s *discoveryv1.EndpointSlice) (out []netip.Addr) {
	for _, e := range s.Endpoints {
		out = append(out, netip.MustParseAddr(e.Addresses[0]))
	}
	return out
}

// series makes changes, one after the other is in force, with a pause before each, until there are n or patience ends.
func (c *cluster) series(n int, patience, pause time.Duration, change func() (netip.AddrPort, []runtime.Object, []netip.Addr)) (spread, error) {
	var took []time.Duration
	end := time.Now().Add(patience)
	for len(took) < n && time.Now().Before(end) {
		if pause > 0 {
			time.Sleep(pause) // as long as users wait between two changes
		}
		to, objects, want := change()
		began := time.Now()
		c.api.Put(objects...)
		if _, err := c.until(to, began.Add(patience), func(a bed.Answer) bool { return slices.Contains(want, a.At.Addr()) }); err != nil {
			if dead := c.dead(); dead != nil {
				return spread{}, dead
			}
			return spread{}, fmt.Errorf("%s does not reach %v: %w", to, want, err)
		}
		took = append(took, time.Since(began))
	}
	return spreadOf(took), nil
}

// until connects again and again until the answer is right, without a pause: a connection takes a tenth of a millisecond.
func (c *cluster) until(to netip.AddrPort, deadline time.Time, right func(bed.Answer) bool) (a bed.Answer, err error) {
	q := &bed.Quick{Packet: bed.Packet{From: netip.MustParseAddr(bed.PodIP), To: to, Proto: "tcp"}, Within: within}
	wrong := fmt.Errorf("never asked")
	e := c.bed.Each(q, func(got bed.Answer, _ time.Duration, err error) bool {
		a = got
		if wrong = err; err == nil && !right(got) {
			wrong = fmt.Errorf("it reaches %s", got.At)
		}
		return wrong != nil && time.Now().Before(deadline) && c.dead() == nil
	})
	if e != nil {
		return a, e
	}
	return a, wrong
}

// connects times connect(2) to a VIP and to one of its endpoints, in turns, so that both meet the same machine.
func (c *cluster) connects(to netip.AddrPort, n int) (through, direct spread, err error) {
	var times [2][]time.Duration
	a, err := c.until(to, time.Now().Add(within), func(bed.Answer) bool { return true })
	if err != nil {
		return through, direct, err
	}
	const turn = 200
	for done := 0; done < n; done += turn {
		for i, to := range []netip.AddrPort{to, a.At} {
			q := &bed.Quick{Packet: bed.Packet{From: netip.MustParseAddr(bed.PodIP), To: to, Proto: "tcp"}, Within: within}
			k := 0
			var failed error
			if err := c.bed.Each(q, func(_ bed.Answer, took time.Duration, err error) bool {
				failed = err
				times[i] = append(times[i], took)
				k++
				return err == nil && k < turn
			}); err != nil {
				return through, direct, err
			}
			if failed != nil {
				return through, direct, fmt.Errorf("connect to %s: %w", to, failed)
			}
		}
	}
	return spreadOf(times[0]), spreadOf(times[1]), nil
}

// restart kills the process, makes a change while it is away, starts it, and waits for the change.
func (c *cluster) restart(argv []string, count int, n sizes) (time.Duration, error) {
	c.end()
	to, objects, want := c.replacement(count)
	c.api.Put(objects...)
	began := time.Now()
	var err error
	if c.process, err = start(c.bed, argv); err != nil {
		return 0, err
	}
	_, err = c.until(to, began.Add(n.patience), func(a bed.Answer) bool { return slices.Contains(want, a.At.Addr()) })
	return time.Since(began), err
}
