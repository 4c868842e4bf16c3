package mount

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Point is one line of /proc/self/mountinfo. Source: proc_pid_mountinfo(5).
type Point struct {
	ID, Parent    int
	Root, Path    string
	Type, Source  string
	Options       string // per mount
	SuperOptions  string
	Shared, Slave int // peer group ids, 0 if none
}

// Table reads the mounts of the calling process' namespace, in the order they were made.
func Table() ([]Point, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("mount table: %w", err)
	}
	return parse(string(b)), nil
}

func parse(text string) []Point {
	var out []Point
	for line := range strings.Lines(text) {
		left, right, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 2 {
			continue
		}
		p := Point{Root: unescape(l[3]), Path: unescape(l[4]), Options: l[5], Type: r[0], Source: unescape(r[1])}
		p.ID, _ = strconv.Atoi(l[0])
		p.Parent, _ = strconv.Atoi(l[1])
		if len(r) > 2 {
			p.SuperOptions = r[2]
		}
		for _, tag := range l[6:] {
			key, value, _ := strings.Cut(tag, ":")
			n, _ := strconv.Atoi(value)
			switch key {
			case "shared":
				p.Shared = n
			case "master":
				p.Slave = n
			}
		}
		out = append(out, p)
	}
	return out
}

// unescape undoes the kernel's octal escapes of space, tab, newline and backslash.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Below returns the paths of all mounts at or below dir, deepest last made first: the order to unmount them in.
func Below(dir string) ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("mount table: %w", err)
	}
	dir = strings.TrimSuffix(dir, "/")
	// A busy node has thousands of mounts; few lines are about dir. A name that the kernel escapes is looked for in all.
	var near strings.Builder
	for line := range strings.Lines(string(b)) {
		if strings.ContainsAny(dir, " \t\n\\") || strings.Contains(line, dir) {
			near.WriteString(line)
		}
	}
	points := parse(near.String())
	var out []string
	for i := len(points) - 1; i >= 0; i-- {
		if p := points[i].Path; p == dir || strings.HasPrefix(p, dir+"/") {
			out = append(out, p)
		}
	}
	return out, nil
}

// Clear detaches every mount at or below dir, so that what is mounted there is not taken for dir's own when it is
// removed. Repeat: safe.
func Clear(dir string) error {
	points, err := Below(dir)
	if err != nil {
		return err
	}
	for _, p := range points {
		if err := Detach(p); err != nil {
			return err
		}
	}
	return nil
}
