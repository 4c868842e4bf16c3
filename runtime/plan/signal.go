package plan

import (
	"strconv"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
)

// signals are Linux's numbers on every architecture we build for. Source: signal(7), the x86/ARM column.
var signals = [...]string{1: "HUP", 2: "INT", 3: "QUIT", 4: "ILL", 5: "TRAP", 6: "ABRT", 7: "BUS", 8: "FPE", 9: "KILL", 10: "USR1",
	11: "SEGV", 12: "USR2", 13: "PIPE", 14: "ALRM", 15: "TERM", 16: "STKFLT", 17: "CHLD", 18: "CONT", 19: "STOP", 20: "TSTP",
	21: "TTIN", 22: "TTOU", 23: "URG", 24: "XCPU", 25: "XFSZ", 26: "VTALRM", 27: "PROF", 28: "WINCH", 29: "IO", 30: "PWR", 31: "SYS"}

const (
	sigTerm  = 15
	sigRTMin = 34 // as libc counts: the kernel's first two are libc's own
	sigRTMax = 64
)

// StopSignal is what StopContainer sends first: the request's word, else the image's, else TERM.
// Errors: Invalid for a name that is no signal; the image's author made the mistake, so the text names it.
func StopSignal(c *cri.ContainerConfig, image string) (int, error) {
	name := image
	if s := c.GetStopSignal(); s != cri.Signal_SIGNAL_RUNTIME_DEFAULT {
		name = strings.TrimPrefix(s.String(), "SIGNAL_")
	}
	if name == "" {
		return sigTerm, nil
	}
	if n, ok := signalNumber(name); ok {
		return n, nil
	}
	return 0, fault.New(fault.Invalid, "stop signal %q is not a signal", name)
}

func signalNumber(name string) (int, bool) {
	if n, err := strconv.Atoi(name); err == nil {
		return n, n > 0 && n <= sigRTMax
	}
	name = strings.TrimPrefix(strings.ToUpper(name), "SIG")
	switch name {
	case "CLD":
		name = "CHLD"
	case "IOT":
		name = "ABRT"
	case "POLL":
		name = "IO"
	}
	for n, s := range signals {
		if s != "" && s == name {
			return n, true
		}
	}
	return realTime(name)
}

// realTime reads RTMIN, RTMIN+3 (CRI writes RTMINPLUS3), RTMAX, RTMAX-2.
func realTime(name string) (int, bool) {
	name = strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(name)
	base, rest := 0, ""
	switch {
	case strings.HasPrefix(name, "RTMIN"):
		base, rest = sigRTMin, name[len("RTMIN"):]
	case strings.HasPrefix(name, "RTMAX"):
		base, rest = sigRTMax, name[len("RTMAX"):]
	default:
		return 0, false
	}
	if rest == "" {
		return base, true
	}
	offset, err := strconv.Atoi(rest)
	n := base + offset
	return n, err == nil && n >= sigRTMin && n <= sigRTMax
}
