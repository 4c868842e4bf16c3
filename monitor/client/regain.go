package client

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/pidfd"
)

// journalSize is that of the page that a log journal is. An empty one says that nothing was under way.
const journalSize = 4096

// Regain finds what a monitor keeps of a running container through the process itself, for when all who kept it died
// together: its pidfd, the read ends of its pipes, and a fresh log journal. The container's own ends have kept the
// pipes, and all that was written meanwhile; at worst the log repeats the lines that were being written at that moment.
// names are those of wire.Process.Files; the caller owns files. A stream that the process has closed or redirected is
// not among them, and neither is a terminal: that hung up.
// Errors: NotFound if the process that began at start has gone.
func Regain(pid int, start uint64) (files []*os.File, names []string, err error) {
	p, err := pidfd.Open(pid)
	if err != nil {
		return nil, nil, err
	}
	files, names = append(files, p), append(names, "pidfd")
	for i, name := range []string{"stdout", "stderr"} {
		f, err := openPipe(pid, i+1)
		if err != nil {
			continue
		}
		files, names = append(files, f), append(names, name)
	}
	// Only now: the pid may have been reused at any moment before.
	if now, err := pidfd.StartTime(pid); err != nil || now != start {
		closeAll(files)
		return nil, nil, fault.New(fault.NotFound, "process %d has ended", pid)
	}
	if len(files) == 1 {
		return files, names, nil
	}
	fd, err := unix.MemfdCreate("worknode-journal", unix.MFD_CLOEXEC)
	if err == nil {
		j := os.NewFile(uintptr(fd), "journal")
		files, names = append(files, j), append(names, "journal")
		err = unix.Ftruncate(fd, journalSize)
	}
	if err != nil {
		closeAll(files)
		return nil, nil, fmt.Errorf("journal: %w", err)
	}
	return files, names, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

var errOther = errors.New("not a pipe of ours")

// openPipe opens the read end of the pipe that a process has as fd, if the monitor made it: those alone are anonymous
// pipes that a process holds open both ways. To read from one that the process made itself would steal its data.
func openPipe(pid, fd int) (*os.File, error) {
	at := strconv.Itoa(pid)
	info, err := os.ReadFile("/proc/" + at + "/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return nil, err
	}
	_, flags, _ := strings.Cut(string(info), "flags:")
	flags, _, _ = strings.Cut(strings.TrimSpace(flags), "\n")
	if mode, err := strconv.ParseUint(strings.TrimSpace(flags), 8, 64); err != nil || mode&unix.O_ACCMODE != unix.O_RDWR {
		return nil, errOther
	}
	// By its path first: to open something that is no pipe might have effects.
	path, err := unix.Open("/proc/"+at+"/fd/"+strconv.Itoa(fd), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(path)
	var on unix.Statfs_t
	if err := unix.Fstatfs(path, &on); err != nil || on.Type != unix.PIPEFS_MAGIC {
		return nil, errOther
	}
	end, err := unix.Open("/proc/self/fd/"+strconv.Itoa(path), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(end), "pipe"), nil
}
