package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	logEvery = time.Millisecond // the talker's beat
	logLines = 10               // lines a beat: 10,000 a second
	talkFor  = 4 * time.Second  // how long it talks
	killAt   = time.Second      // when the runtime is killed
	deadFor  = time.Second      // and when it starts again after that

	talkRounds = 3
)

// stall is what a container that logs all the time notices of its runtime's death.
type stall struct {
	calm, killed time.Duration // its longest write, without and with the kill
	lost         int           // lines missing or torn in the log file, with the kill
}

// talk is the workload: numbered lines on stdout, its longest write and the count of lines in a file.
func talk(report string, whole time.Duration) error {
	tick := time.NewTicker(logEvery)
	defer tick.Stop()
	var longest time.Duration
	lines := 0
	pad := strings.Repeat("x", 80)
	for begin := time.Now(); time.Since(begin) < whole; <-tick.C {
		// A beat that was missed is made up for, so the rate holds however busy the machine is.
		for due := int(time.Since(begin)/logEvery) * logLines; lines < due; lines++ {
			at := time.Now()
			if _, err := fmt.Fprintf(os.Stdout, "%d %s\n", lines, pad); err != nil {
				return err
			}
			longest = max(longest, time.Since(at))
		}
	}
	if err := os.WriteFile(report+".new", fmt.Appendf(nil, "%d %d", longest, lines), 0o644); err != nil {
		return err
	}
	return os.Rename(report+".new", report)
}

// stalls has a container talk, undisturbed and with the runtime killed and started again amid, several times each. The
// shortest of the longest writes counts: a busy machine only ever lengthens them.
func (n *node) stalls(ctx context.Context) (s stall, err error) {
	for round := range talkRounds {
		calm, _, err := n.listen(ctx, nil)
		if err != nil {
			return s, err
		}
		killed, lost, err := n.listen(ctx, func() error { return n.killAndLaunch(ctx) })
		if err != nil {
			return s, err
		}
		s.lost += lost
		if round == 0 {
			s.calm, s.killed = calm, killed
		}
		s.calm, s.killed = min(s.calm, calm), min(s.killed, killed)
	}
	return s, nil
}

func (n *node) killAndLaunch(ctx context.Context) error {
	if err := wait(ctx, killAt); err != nil {
		return err
	}
	if err := n.cmd.Process.Kill(); err != nil {
		return err
	}
	n.cmd.Wait()
	if err := wait(ctx, deadFor); err != nil {
		return err
	}
	return n.launch(ctx)
}

// listen runs a talker with a disturbance and returns its longest write and how many of its lines the log lacks.
func (n *node) listen(ctx context.Context, disturb func() error) (time.Duration, int, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, 0, err
	}
	n.serial++
	out := filepath.Join(n.dir, "talk", fmt.Sprint(n.serial))
	if err := os.MkdirAll(out, 0o755); err != nil {
		return 0, 0, err
	}
	logs, _, err := n.startPodWith(ctx, n.serial, cri.NamespaceMode_NODE, func(c *cri.ContainerConfig) {
		c.Command = []string{"/talker", "-talk", "/out/report", "-for", talkFor.String()}
		c.Mounts = []*cri.Mount{{HostPath: self, ContainerPath: "/talker", Readonly: true}, {HostPath: out, ContainerPath: "/out"}}
	})
	if err != nil {
		return 0, 0, err
	}
	if disturb != nil {
		if err := disturb(); err != nil {
			return 0, 0, err
		}
	}
	var report []byte
	err = n.until(ctx, "the talker's report", func(context.Context) bool {
		report, err = os.ReadFile(filepath.Join(out, "report"))
		return err == nil
	})
	if err != nil {
		return 0, 0, err
	}
	var longest time.Duration
	var lines int
	if _, err := fmt.Sscanf(string(report), "%d %d", &longest, &lines); err != nil {
		return 0, 0, fmt.Errorf("talker's report %q: %w", report, err)
	}
	if err := n.removePod(ctx, logs.sandbox); err != nil {
		return 0, 0, err
	}
	text, err := os.ReadFile(filepath.Join(n.dir, "logs", fmt.Sprint(n.serial), "main.log"))
	return longest, lines - whole(string(text)), err
}

// whole counts the distinct numbered lines of a CRI log that are complete.
func whole(text string) int {
	seen := map[int]bool{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 5 || f[2] != "F" || len(f[4]) != 80 || !strings.HasSuffix(line, "\n") {
			continue
		}
		if number, err := strconv.Atoi(f[3]); err == nil {
			seen[number] = true
		}
	}
	return len(seen)
}
