package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// commits is a histogram of the contestant's own: from an event received to its transaction committed.
type commits struct {
	bounds []time.Duration
	counts []uint64 // up to the bound
}

// commitMetric is worknode's own, as fine as it needs; kube-proxy has none of that meaning.
const commitMetric = "worknode_proxy_commit_duration_seconds"

func readCommits(c *cluster, who contestant) (h commits, err error) {
	if who.metrics == "" {
		return h, nil
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, Dial: func(_, _ string) (net.Conn, error) {
		return c.bed.Dial("tcp", netip.MustParseAddr("127.0.0.1"), netip.MustParseAddrPort(who.metrics), time.Second)
	}}}
	r, err := client.Get("http://" + who.metrics + "/metrics")
	if err != nil {
		return h, fmt.Errorf("metrics: %w", err)
	}
	defer r.Body.Close()
	return parseCommits(r.Body)
}

func parseCommits(r io.Reader) (h commits, err error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), commitMetric+`_bucket{`)
		if !ok {
			continue
		}
		labels, value, _ := strings.Cut(rest, "} ")
		_, le, _ := strings.Cut(labels, `le="`)
		le, _, _ = strings.Cut(le, `"`)
		if le == "+Inf" {
			le = "3600"
		}
		bound, err := strconv.ParseFloat(le, 64)
		if err != nil {
			return h, fmt.Errorf("metrics: %q: %w", lines.Text(), err)
		}
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return h, fmt.Errorf("metrics: %q: %w", lines.Text(), err)
		}
		h.bounds = append(h.bounds, time.Duration(bound*float64(time.Second)))
		h.counts = append(h.counts, n)
	}
	return h, lines.Err()
}

// minus is what came between two readings: the bounds that half and all but a hundredth stay under.
func (h commits) minus(before commits) (spread, bool) {
	if len(h.counts) == 0 || len(h.counts) != len(before.counts) {
		return spread{}, false
	}
	last := len(h.counts) - 1
	total := h.counts[last] - before.counts[last]
	if total == 0 {
		return spread{}, false
	}
	under := func(share float64) time.Duration {
		for i, b := range h.bounds {
			if float64(h.counts[i]-before.counts[i]) >= share*float64(total) {
				return b
			}
		}
		return h.bounds[last]
	}
	return spread{p50: under(0.5), p99: under(0.99), n: int(total)}, true
}
