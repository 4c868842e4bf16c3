package act

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Held is what a container's processes hold open together, and what its first one may.
type Held struct{ Processes, Files, Sockets, FileLimit uint64 }

// ReadHeld counts the descriptors of a cgroup's processes; those that end meanwhile count as nothing.
// first is the container's first process, whose limit is told. Source: proc(5), /proc/PID/fd and /proc/PID/limits.
func (h *Hands) ReadHeld(group string, first int) Held {
	pids, err := h.Tree.Procs(group)
	if err != nil {
		return Held{}
	}
	out := Held{Processes: uint64(len(pids)), FileLimit: fileLimit(first)}
	for _, pid := range pids {
		dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		out.Files += uint64(len(entries))
		for _, e := range entries {
			if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && strings.HasPrefix(target, "socket:") {
				out.Sockets++
			}
		}
	}
	return out
}

func fileLimit(pid int) uint64 {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "limits"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "Max open files"); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				n, _ := strconv.ParseUint(f[0], 10, 64) // "unlimited" is 0
				return n
			}
		}
	}
	return 0
}

// Disk is the file system that a folder lies on.
type Disk struct {
	Device             string // below /dev; "major:minor" for what has no such name
	Bytes              uint64
	Inodes, InodesFree uint64
}

// ReadDisk asks for a folder's file system; what cannot be read is zero.
func ReadDisk(dir string) Disk {
	var st unix.Stat_t
	var fs unix.Statfs_t
	if unix.Stat(dir, &st) != nil || unix.Statfs(dir, &fs) != nil {
		return Disk{}
	}
	return Disk{Device: BlockName(uint64(unix.Major(st.Dev)), uint64(unix.Minor(st.Dev))), Bytes: fs.Blocks * uint64(fs.Bsize), Inodes: fs.Files, InodesFree: fs.Ffree}
}

// BlockName is a block device's name as people know it. Source: kernel sysfs, /sys/dev/block.
func BlockName(major, minor uint64) string {
	number := strconv.FormatUint(major, 10) + ":" + strconv.FormatUint(minor, 10)
	target, err := os.Readlink("/sys/dev/block/" + number)
	if err != nil {
		return number
	}
	return "/dev/" + filepath.Base(target)
}
