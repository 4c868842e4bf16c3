package sysctl

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"worknode/fault"
)

// Source of the table: pkg/proxy/conntrack/sysctls_test.go TestGetConntrackMax.
func TestMax(t *testing.T) {
	for _, c := range []struct{ perCore, least, cores, want int }{
		{0, 0, 2, 0},
		{10, 0, 2, 20},
		{0, 1, 2, 0},
		{10, 32768, 2, 32768},
		{32768, 131072, 8, 262144},
		{32768, 131072, 2, 131072},
		{131072, 0, 32, 1 << 20},
	} {
		if got := Max(c.perCore, c.least, c.cores); got != c.want {
			t.Errorf("%d a core, at least %d, %d cores: %d, want %d", c.perCore, c.least, c.cores, got, c.want)
		}
	}
}

// tree is a kernel made of files.
func tree(t *testing.T, files map[string]string) Tree {
	t.Helper()
	dir := t.TempDir()
	at := Tree{filepath.Join(dir, "proc"), filepath.Join(dir, "sys")}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return at
}

func TestSettingsAreRaisedAndNeverLowered(t *testing.T) {
	const net, hash = "proc/sys/net/netfilter/nf_conntrack_", "sys/module/nf_conntrack/parameters/hashsize"
	all := func(limit, buckets, established, liberal string) map[string]string {
		return map[string]string{net + "max": limit, hash: buckets, net + "tcp_timeout_established": established, net + "tcp_timeout_close_wait": "60",
			net + "udp_timeout": "30", net + "udp_timeout_stream": "120", net + "tcp_be_liberal": liberal}
	}
	want := Conntrack{Max: 131072, Established: 24 * time.Hour, CloseWait: time.Hour, BeLiberal: true}
	for _, c := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"all is small", all("65536", "16384", "432000", "0"), "[{nf_conntrack_max 65536 131072} {hashsize 16384 32768} {nf_conntrack_tcp_timeout_established 432000 86400} {nf_conntrack_tcp_timeout_close_wait 60 3600} {nf_conntrack_tcp_be_liberal 0 1}]"},
		{"the limit is larger", all("262144", "65536", "86400", "1"), "[{nf_conntrack_tcp_timeout_close_wait 60 3600}]"},
	} {
		at := tree(t, c.files)
		got, err := at.Apply(want)
		if err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("%s: %v, %v\nwant %s", c.name, got, err, c.want)
		}
		if again, err := at.Apply(want); err != nil || len(again) > 0 {
			t.Errorf("%s: once more: %v, %v", c.name, again, err)
		}
		if !at.Liberal() {
			t.Errorf("%s: not liberal", c.name)
		}
	}
	// What is not there is named, and does not keep the rest from being set.
	files := all("65536", "16384", "1", "0")
	delete(files, net+"max")
	at := tree(t, files)
	got, err := at.Apply(want)
	if err == nil || !strings.Contains(err.Error(), "nf_conntrack_max: not there (connection tracking is not loaded yet") || len(got) != 4 {
		t.Errorf("%v, %v", got, err)
	}
	// A zero leaves all as it is.
	if got, err := at.Apply(Conntrack{}); err != nil || len(got) > 0 {
		t.Errorf("%v, %v", got, err)
	}
	// A kernel that refuses says so by kind.
	if err := os.Remove(filepath.Join(at.Sys, "module/nf_conntrack/parameters/hashsize")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(at.Sys, "module/nf_conntrack/parameters/hashsize"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := at.Apply(Conntrack{Max: 1 << 20}); err == nil || !strings.Contains(err.Error(), "set hashsize to 262144") || fault.Of(err) == fault.Invalid {
		t.Errorf("%v", err)
	}
}

func TestCores(t *testing.T) {
	if n := Kernel.Cores(); n < 1 {
		t.Errorf("this machine has %d cores", n)
	}
}

// The process goes as low as it may.
func TestProtectSelf(t *testing.T) {
	was, err := read("/proc/self/oom_score_adj")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Kernel.ProtectSelf(-999)
	if err != nil {
		t.Fatal(err)
	}
	if now, _ := read("/proc/self/oom_score_adj"); now != got || got > was {
		t.Errorf("it was %d, we asked for -999, were told %d, and have %d", was, got, now)
	}
	if got, err = Kernel.ProtectSelf(was); err != nil || got != was {
		t.Errorf("back: %d, %v", got, err)
	}
}
