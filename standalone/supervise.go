package standalone

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"worknode/kernel/reap"
)

// service is one of the node's processes. It is started in a session of its own with its log in a file, so that it
// owes nothing to the supervisor and lives on when that is killed; the next supervisor finds it by its pid file.
type service struct {
	name string
	argv []string // argv[0] is the subcommand
}

const (
	restartFirst = 100 * time.Millisecond
	restartMost  = 10 * time.Second
	steadyAfter  = 10 * time.Second // a process that ran this long starts over with the shortest back-off
	oldLog       = 8 << 20          // bytes; a larger log file is set aside when its process starts
)

// pidRecord names a process so that it can be recognised later, also across reuse of its pid.
type pidRecord struct {
	Pid   int
	Start uint64
	Build string
	Argv  []string
}

// keep runs s until ctx ends: adopts it if it runs already, restarts it whenever it exits.
func (n *node) keep(ctx context.Context, s service) {
	log := slog.With("process", s.name)
	wait := time.Duration(0)
	exit, pid, began := n.adopt(s, log)
	for ctx.Err() == nil {
		if exit == nil {
			var err error
			if pid, exit, err = n.start(s); err != nil {
				log.Error("process does not start, retrying", "err", err, "in", max(wait, restartFirst))
				wait = backOff(wait)
				pause(ctx, wait)
				continue
			}
			began = time.Now()
		}
		select {
		case <-ctx.Done():
			return
		case how := <-exit:
			exit = nil
			if time.Since(began) > steadyAfter {
				wait = 0
			}
			log.Warn("process ended, restarting it", "pid", pid, "how", how.String(), "in", wait, "log", n.logFile(s.name))
			pause(ctx, wait)
			wait = backOff(wait)
		}
	}
}

func backOff(wait time.Duration) time.Duration {
	return min(max(2*wait, restartFirst), restartMost)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// adopt takes over a running process of an earlier supervisor, if it is of this build and has the same arguments.
func (n *node) adopt(s service, log *slog.Logger) (<-chan reap.Exit, int, time.Time) {
	was, exit, alive := n.find(s)
	if !alive {
		return nil, 0, time.Time{}
	}
	if was.Build != n.build || fmt.Sprint(was.Argv) != fmt.Sprint(s.argv) {
		log.Info("replacing a process of another build or with other flags", "pid", was.Pid, "build", was.Build)
		syscall.Kill(was.Pid, syscall.SIGTERM)
		select {
		case <-exit:
		case <-time.After(5 * time.Second):
			syscall.Kill(was.Pid, syscall.SIGKILL)
			<-exit
		}
		return nil, 0, time.Time{}
	}
	log.Info("adopted", "pid", was.Pid)
	return exit, was.Pid, time.Now()
}

// find looks where a service runs: by its pid file, else by its arguments, as a supervisor may have been killed between
// the start of a process and the writing of its pid file. What has no record has no known build: it is replaced.
func (n *node) find(s service) (was pidRecord, exit <-chan reap.Exit, alive bool) {
	if data, err := os.ReadFile(n.place.Pid(s.name)); err == nil && json.Unmarshal(data, &was) == nil {
		if exit, alive = reap.Adopt(was.Pid, was.Start); alive {
			return was, exit, true
		}
	}
	pid, found := reap.Find(append([]string{"worknode"}, s.argv...))
	if !found {
		return was, nil, false
	}
	began, err := reap.StartTime(pid)
	if err != nil {
		return was, nil, false
	}
	exit, alive = reap.Adopt(pid, began)
	return pidRecord{Pid: pid, Start: began, Argv: s.argv}, exit, alive
}

func (n *node) logFile(name string) string { return filepath.Join(n.place.Logs(), name+".log") }

// start launches s inside the node's network namespace and records its pid.
func (n *node) start(s service) (int, <-chan reap.Exit, error) {
	file := n.logFile(s.name)
	if st, err := os.Stat(file); err == nil && st.Size() > oldLog {
		_ = os.Rename(file, file+".1") // else it grows on, and the next start tries again
	}
	out, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, nil, err
	}
	defer out.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, nil, err
	}
	defer null.Close()
	attr := &os.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []*os.File{null, out, out}, Sys: &syscall.SysProcAttr{Setsid: true},
	}
	var pid int
	var exit <-chan reap.Exit
	err = n.inside(func() error {
		var err error
		pid, exit, err = n.reaper.Start(n.self, append([]string{"worknode"}, s.argv...), attr)
		return err
	})
	if err != nil {
		return 0, nil, err
	}
	// A start time that cannot be read means the process has ended already; exit says so in a moment.
	began, _ := reap.StartTime(pid)
	record, err := json.Marshal(pidRecord{pid, began, n.build, s.argv})
	if err == nil {
		err = writeFile(n.place.Pid(s.name), record, 0o644)
	}
	if err != nil {
		slog.Warn("the next supervisor will not find this process", "process", s.name, "err", err)
	}
	return pid, exit, nil
}

// end stops s gracefully, by SIGKILL after wait, and removes its pid file.
func (n *node) end(s service, wait time.Duration) {
	if was, exit, alive := n.find(s); alive {
		syscall.Kill(was.Pid, syscall.SIGTERM)
		select {
		case <-exit:
		case <-time.After(wait):
			slog.Warn("process did not end in time, killing it", "process", s.name, "pid", was.Pid)
			syscall.Kill(was.Pid, syscall.SIGKILL)
			<-exit
		}
	}
	os.Remove(n.place.Pid(s.name))
}
