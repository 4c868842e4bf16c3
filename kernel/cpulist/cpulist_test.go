package cpulist

import "testing"

func TestCount(t *testing.T) {
	for list, want := range map[string]int{
		"0": 1, "0-3": 4, "0-3,8,10-11": 7, "0-1,4,6-7": 5, "0-3,2": 4, " 0, 1\n": 2, "0-65535": 65536,
		"": 0, "x": 0, "3-1": 0, "-1": 0, "0,": 0, "0-": 0, "0-70000": 0,
	} {
		if got := Count(list); got != want {
			t.Errorf("%q: %d, want %d", list, got, want)
		}
	}
}
