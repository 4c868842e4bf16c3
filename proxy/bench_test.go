package proxy

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"worknode/proxy/api"
)

// From an event received to the kernel's word that it is done, beside so many Services with three endpoints each.
func BenchmarkEventToKernel(b *testing.B) {
	for _, n := range []int{1000, 10000, 30000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() { // what is measured is reported by name
			}
			r := newRig(b, nil, false)
			for i := range n {
				r.send(service(i), slice(i, 3, i))
			}
			var before, after runtime.MemStats
			r.send(synced)
			c := r.commit("first load", nil)
			b.ReportMetric(float64(c.Done.Sub(c.Began).Milliseconds()), "load-ms")
			runtime.GC()
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "heap-B/service")
			for _, kind := range []struct {
				name  string
				event func(i int) api.Event
			}{
				{"replace", func(i int) api.Event { return slice(i%n, 3, i+n) }},
				{"scale", func(i int) api.Event { return slice(i%n, 4+i/n%2, i) }},
				{"service", func(i int) api.Event { return service(40000 + i) }},
			} {
				const rounds = 300
				took := make([]time.Duration, 0, rounds)
				for i := range rounds {
					began := time.Now()
					r.send(kind.event(i))
					r.commit("event", nil)
					took = append(took, time.Since(began))
				}
				b.ReportMetric(float64(quantile(took, 50).Microseconds()), kind.name+"-p50-µs")
				b.ReportMetric(float64(quantile(took, 99).Microseconds()), kind.name+"-p99-µs")
			}
		})
	}
}

func quantile(list []time.Duration, p int) time.Duration {
	for i := range list {
		for j := i; j > 0 && list[j] < list[j-1]; j-- {
			list[j], list[j-1] = list[j-1], list[j]
		}
	}
	return list[(len(list)-1)*p/100]
}
