package pidfd

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"worknode/fault"
)

// PidOf is the number that this process' pid namespace has for the process that f names.
// Errors: NotFound if it has been reaped or is in no namespace below ours; Invalid if f is no pidfd.
// Source: proc_pid_fdinfo(5), "Pid".
func PidOf(f *os.File) (int, error) {
	var text []byte
	var err error
	cerr := control(f, func(fd int) { text, err = os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd)) })
	if cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, fmt.Errorf("process behind %s: %w", f.Name(), err)
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "Pid:"); ok {
			pid, err := strconv.Atoi(strings.TrimSpace(v))
			if err == nil && pid > 0 {
				return pid, nil
			}
			return 0, fault.New(fault.NotFound, "process behind %s: it is gone, or nowhere to be seen from here", f.Name())
		}
	}
	return 0, fault.New(fault.Invalid, "%s is no pidfd", f.Name())
}
