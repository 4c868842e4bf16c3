package text

import (
	"os"
	"regexp"
	"strconv"
	"testing"
)

func resident(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`RssFile:\s+(\d+)`).FindSubmatch(data)
	if m == nil {
		t.Fatalf("no RssFile in\n%s", data)
	}
	n, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestTheProgramRunsOnAfterItsPagesWent(t *testing.T) {
	before := resident(t)
	for range 3 {
		if err := Shed(); err != nil {
			t.Fatal(err)
		}
	}
	if after := resident(t); after >= before {
		t.Errorf("%d KiB of files mapped, before %d", after, before)
	}
}

func TestOnlyWhatIsConstantIsDropped(t *testing.T) {
	for line, want := range map[string]bool{
		"00400000-00a00000 r-xp 00000000 fe:00 1 /bin/x":           true,
		"00a00000-00b00000 r--p 00600000 fe:00 1 /bin/x":           true,
		"00b00000-00c00000 rw-p 00700000 fe:00 1 /bin/x":           false,
		"00400000-00a00000 r-xp 00000000 fe:00 1 /bin/y":           false,
		"00400000-00a00000 r-xp 00000000 fe:00 1 /bin/x (deleted)": false,
		"7ffd0000-7ffe0000 r--p 00000000 00:00 0 [vvar]":           false,
		"nonsense": false,
	} {
		if _, _, got := constant(line, "/bin/x"); got != want {
			t.Errorf("%q: %v", line, got)
		}
	}
}
