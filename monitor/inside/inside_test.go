package inside

import (
	"encoding/binary"
	"encoding/json"
	"testing"
)

func TestReadyFrameIsAReport(t *testing.T) {
	var r Report
	size := binary.LittleEndian.Uint32([]byte(ready))
	if err := json.Unmarshal([]byte(ready[4:]), &r); err != nil || !r.Ready || int(size) != len(ready)-4 {
		t.Errorf("frame %q: size %d, report %+v (%v)", ready, size, r, err)
	}
}

func TestLookPath(t *testing.T) {
	for _, tc := range []struct{ name, path, want string }{
		{"sh", "/absent:/bin", "/bin/sh"}, {"sh", "", ""}, {"/bin/sh", "", "/bin/sh"}, {"absent", "/bin", ""}, {"/etc", "", ""},
	} {
		got, err := lookPath(tc.name, []string{"PATH=/x", "PATH=" + tc.path})
		if (err == nil) != (tc.want != "") || err == nil && got != tc.want {
			t.Errorf("lookPath(%q, %q) = %q, %v; want %q", tc.name, tc.path, got, err, tc.want)
		}
	}
}
