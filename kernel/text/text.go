// Package text gives back the pages of the program file that only the start needed.
package text

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Shed unmaps the pages of the program's code and constants. Those that are needed come back from the page cache, at about
// half a microsecond each; those that were touched once at the start, or mapped beside such (the kernel maps 64 KiB around
// each fault of what is cached), do not. They count as the process's memory until then: 25 MiB of 30 in an idle
// `worknode runtime`. Repeat: safe, at any time.
// Source: madvise(2), MADV_DONTNEED; kernel Documentation/mm, fault-around.
func Shed() error {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	var failed []error
	for lines := bufio.NewScanner(f); lines.Scan(); {
		from, to, ok := constant(lines.Text(), self)
		if !ok {
			continue
		}
		if err := unix.Madvise(memory(from, to), unix.MADV_DONTNEED); err != nil {
			failed = append(failed, fmt.Errorf("madvise %x-%x: %w", from, to, err))
		}
	}
	return errors.Join(failed...)
}

// constant finds a mapping of the file that nobody can have written to: what is dropped is in the file.
func constant(line, file string) (from, to uintptr, ok bool) {
	var perms string
	if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &perms); n != 3 || to <= from {
		return 0, 0, false
	}
	return from, to, (perms == "r-xp" || perms == "r--p") && strings.HasSuffix(line, " "+file)
}

// memory is the slice of a mapping that /proc tells of.
func memory(from, to uintptr) []byte {
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&from)), to-from)
}
