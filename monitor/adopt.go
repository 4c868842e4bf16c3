package monitor

import (
	"context"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/pidfd"
	"worknode/monitor/wire"
)

// adopt takes over a process of a monitor that was killed. It owns fds, whose names are info.Files.
// May be repeated after an error; Exists means that it is kept already.
func (m *Monitor) adopt(info wire.Process, fds []int) error {
	for _, fd := range fds {
		_ = unix.SetNonblock(fd, true)
	}
	files := wire.Polled(fds, info.Files)
	p := &process{m: m, adopted: true}
	err := p.takeFiles(info, files)
	var exit *wire.Exit
	if err == nil {
		exit, err = m.claim(p)
	}
	if err != nil {
		p.release()
		return err
	}
	if p.log != nil {
		if err := p.log.recoverBatch(p.pipes); err != nil {
			slog.Error("log may miss or repeat lines", "id", info.ID, "error", err)
		}
	}
	p.startCopying()
	m.mu.Lock()
	m.procs[info.ID] = p
	m.mu.Unlock()
	if exit != nil {
		p.finish(*exit)
		return nil
	}
	m.tasks.Go("wait "+info.ID, p.wait)
	return nil
}

func (p *process) takeFiles(info wire.Process, files []*os.File) error {
	var journalFile *os.File
	if len(files) != len(info.Files) {
		for _, f := range files {
			f.Close()
		}
		return fault.New(fault.Invalid, "adopt %s: %d descriptors, %d names", info.ID, len(files), len(info.Files))
	}
	for i, name := range info.Files {
		switch f := files[i]; name {
		case "stdout":
			p.pipes[0] = f
		case "stderr":
			p.pipes[1] = f
		case "stdin":
			p.stdin = f
		case "pty":
			p.pty = f
		case "pidfd":
			p.pidfd = f
		case "journal":
			journalFile = f
		default:
			f.Close() // a newer runtime keeps more than we know
		}
	}
	if err := checkID(info.ID); err != nil {
		return err
	}
	p.info = info
	p.info.Files, p.info.Exit = nil, nil
	if p.stdin == nil {
		p.info.Stdin = p.info.Stdin && p.pty != nil
	}
	if p.pty != nil {
		p.slave, _ = peerOf(p.pty) // hung up already: the copier sees the end
	}
	if info.Join != "" {
		return nil
	}
	p.log = &logfile{id: info.ID, path: info.LogPath}
	if info.LogPath != "" {
		f, err := openLog(info.LogPath)
		if err != nil {
			// The container outlives its log directory; its output is drained and lost.
			slog.Error("log records are lost; the container runs on", "id", info.ID, "path", info.LogPath, "error", err)
		}
		p.log.file = f
	}
	if journalFile == nil {
		return nil
	}
	j, err := openJournal(journalFile)
	p.log.journal = j
	if err == nil && j.page.stamp == 0 {
		p.log.trim()
	}
	return err
}

// claim reserves the id and finds out whether the process still runs. It returns the exit if that is known already.
func (m *Monitor) claim(p *process) (*wire.Exit, error) {
	m.mu.Lock()
	var exit *wire.Exit
	if have := m.procs[p.info.ID]; have != nil {
		if !have.old {
			m.mu.Unlock()
			return nil, fault.New(fault.Exists, "process %s: the monitor keeps one of that id", p.info.ID)
		}
		exit = have.info.Exit
	}
	m.procs[p.info.ID] = &process{died: true} // reserved
	m.mu.Unlock()
	if exit != nil {
		return exit, nil
	}
	if p.pidfd == nil {
		f, err := pidfd.Open(p.info.Pid)
		if err == nil {
			if start, serr := pidfd.StartTime(p.info.Pid); serr != nil || start != p.info.StartTime {
				f.Close()
				err = fault.New(fault.NotFound, "process %d is another one now", p.info.Pid)
			}
		}
		if err != nil {
			slog.Warn("exit code is unknown", "id", p.info.ID, "error", err)
			return unknownExit(p.info.ID), nil // gone before anybody could watch it: an answer, not a failure
		}
		p.pidfd = f
	}
	return nil, nil
}

func unknownExit(id string) *wire.Exit {
	return &wire.Exit{ID: id, Code: 255, Unknown: true, At: time.Now()}
}

// wait waits for a process that is not our child.
func (p *process) wait(context.Context) {
	if err := pidfd.Wait(p.pidfd); err != nil {
		slog.Error("waiting for the process ended; its exit will not be noticed", "id", p.info.ID, "error", err)
		return
	}
	p.m.steps.enter()
	defer p.m.steps.leave()
	st, err := pidfd.ExitStatus(p.pidfd, p.info.Pid)
	if err != nil {
		slog.Warn("exit code is unknown", "id", p.info.ID, "error", err)
		p.finish(*unknownExit(p.info.ID))
		return
	}
	p.finish(exitOf(p.info.ID, st, time.Now()))
}
