package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"
)

// BenchmarkBigImage unpacks an image of 8 layers from memory: WORKNODE_BENCH_MIB of files, 128 by default, of
// WORKNODE_BENCH_FILE KiB each, 256 by default, half of it hard to compress. WORKNODE_BENCH_DIR names a disk to test.
func BenchmarkBigImage(b *testing.B) {
	mib, size := number("WORKNODE_BENCH_MIB", 128), number("WORKNODE_BENCH_FILE", 256)<<10
	const layers = 8
	l := newLayout(b)
	var plain, packed [][]byte
	random := rand.NewChaCha8([32]byte{})
	for n := range layers {
		var t, z bytes.Buffer
		w := tar.NewWriter(&t)
		data := make([]byte, size)
		for i := range data {
			data[i] = "the quick brown fox jumps over "[i%31]
		}
		for i := range mib << 20 / layers / size {
			random.Read(data[:size/2])
			h := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("data/%d/%d/%d", n, i/100, i), Mode: 0o644, Size: int64(size)}
			if err := w.WriteHeader(h); err != nil {
				b.Fatal(err)
			}
			if _, err := w.Write(data); err != nil {
				b.Fatal(err)
			}
		}
		w.Close()
		zw := gzip.NewWriter(&z)
		zw.Write(t.Bytes())
		zw.Close()
		plain, packed = append(plain, t.Bytes()), append(packed, z.Bytes())
	}
	src := l.shelf(l.image(plain, packed))
	plain = nil
	b.SetBytes(int64(mib) << 20)
	dir := os.Getenv("WORKNODE_BENCH_DIR")
	var used time.Duration
	for b.Loop() {
		b.StopTimer()
		root, err := os.MkdirTemp(dir, "wn-bench-")
		if err != nil {
			b.Fatal(err)
		}
		s, err := Open(root)
		if err != nil {
			b.Fatal(err)
		}
		before := cpuTime(b)
		b.StartTimer()
		if _, err := s.Fetch(b.Context(), "x.example/big:1", src); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		used += cpuTime(b) - before
		s.Close()
		os.RemoveAll(root)
		b.StartTimer()
	}
	b.ReportMetric(used.Seconds()/float64(b.N), "cpu-s/op")
}

func cpuTime(b *testing.B) time.Duration {
	var use unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &use); err != nil {
		b.Fatal(err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

func number(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}
