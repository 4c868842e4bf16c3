package seccomp

import (
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"worknode/fault"
)

// What a filter may answer. Source: seccomp(2), "return value".
const (
	retKillProcess = 0x80000000
	retKillThread  = 0x00000000
	retTrap        = 0x00030000
	retErrno       = 0x00050000
	retTrace       = 0x7ff00000
	retLog         = 0x7ffc0000
	retAllow       = 0x7fff0000

	eperm  = 1
	enosys = 38
)

// Flags of seccomp(2) that a profile may ask for.
const (
	flagTSync     = 1
	flagLog       = 2
	flagSpecAllow = 4
)

// x32Bit marks calls of the x32 ABI, which shares its audit architecture with x86-64.
const x32Bit = 0x40000000

// auditX86_64 is AUDIT_ARCH_X86_64.
const auditX86_64 = 0xc000003e

// machine is one architecture a process of this kernel may make calls for.
type machine struct {
	name  string // as profiles spell it
	audit uint32 // AUDIT_ARCH_*
	calls string // names in order of number; a number appears where the count jumps
}

// numbers reads a table. It is built on demand and dropped after a compile.
func (m machine) numbers() map[string]uint32 {
	words := strings.Fields(m.calls)
	out := make(map[string]uint32, len(words))
	next := uint32(0)
	for _, w := range words {
		if w[0] >= '0' && w[0] <= '9' {
			n, _ := strconv.ParseUint(w, 10, 32)
			next = uint32(n)
			continue
		}
		out[w] = next
		next++
	}
	return out
}

// Program is a filter ready for seccomp(2).
type Program struct {
	Filter []byte // struct sock_filter array, native byte order
	Flags  uint32 // SECCOMP_FILTER_FLAG_*
}

// Compile builds the filter of a profile. What a filter of this build answers is in Actions, Operators and Flags.
//
// Calls that an architecture of the profile knows follow its rules: the first rule whose conditions all hold, else the
// default. Names no architecture knows are skipped, so a profile may name calls newer than our tables. Calls newer than
// any that the profile names answer ENOSYS where the default would answer another error: a C library then falls back to
// the older call, while EPERM would look like a refusal. Calls of an architecture the profile leaves out kill the process.
// Errors: Invalid for what is no profile; Unsupported for user notification and flags we lack.
func Compile(p *specs.LinuxSeccomp) (Program, error) {
	if p.ListenerPath != "" {
		return Program{}, fault.New(fault.Unsupported, "seccomp profile: listenerPath (user notification) is not supported")
	}
	flags, err := flagBits(p.Flags)
	if err != nil {
		return Program{}, err
	}
	fallback, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return Program{}, err
	}
	program := []ins{{code: loadWord, k: offArch}}
	for i, m := range machines {
		wanted := i == 0 && len(p.Architectures) == 0 || slices.Contains(p.Architectures, specs.Arch(m.name))
		if !wanted {
			continue
		}
		block, err := machineBlock(m, p, fallback)
		if err != nil {
			return Program{}, err
		}
		// Blocks are longer than a conditional jump reaches, so the jump goes over a jump.
		program = append(program, ins{code: jumpEqual, jt: 1, k: m.audit}, ins{code: jumpAll, k: uint32(len(block))})
		program = append(program, block...)
	}
	program = append(program, ret(retKillProcess)...)
	if len(program) > maxProgram {
		return Program{}, fault.New(fault.Invalid, "seccomp profile: needs %d instructions, the kernel takes %d", len(program), maxProgram)
	}
	return Program{encode(program), flags}, nil
}

// machineBlock is the code for one architecture; it starts with the number unloaded and returns on every path.
func machineBlock(m machine, p *specs.LinuxSeccomp, fallback uint32) ([]ins, error) {
	numbers := m.numbers()
	rules := map[uint32][]rule{}
	newest := uint32(0)
	for i := range p.Syscalls {
		call := &p.Syscalls[i]
		act, err := action(call.Action, call.ErrnoRet)
		if err != nil {
			return nil, err
		}
		sets, err := conditions(call)
		if err != nil {
			return nil, err
		}
		for _, name := range call.Names {
			n, ok := numbers[name]
			if !ok {
				continue
			}
			newest = max(newest, n)
			for _, conds := range sets {
				rules[n] = append(rules[n], rule{conds, act})
			}
		}
	}
	unknown := fallback
	if fallback&0xffff0000 == retErrno {
		unknown = retErrno | enosys
	}
	if len(rules) == 0 {
		return ret(fallback), nil
	}
	var spans []span
	next := uint32(0)
	for _, n := range sortedKeys(rules) {
		if n > next {
			spans = append(spans, span{next, ret(fallback)})
		}
		spans = append(spans, span{n, chain(rules[n], fallback)})
		next = n + 1
	}
	spans = append(spans, span{max(next, newest+1), ret(unknown)})
	block := []ins{{code: loadWord, k: offNumber}}
	if m.audit == auditX86_64 {
		block = append(block, ins{code: jumpGE, jf: 1, k: x32Bit}, ret(retErrno | enosys)[0])
	}
	return append(block, tree(join(spans))...), nil
}

func sortedKeys(rules map[uint32][]rule) []uint32 {
	out := make([]uint32, 0, len(rules))
	for n := range rules {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// action translates a profile's word; errno is EPERM unless the profile says otherwise.
func action(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	data := uint32(eperm)
	if errno != nil {
		if *errno > 0xffff {
			return 0, fault.New(fault.Invalid, "seccomp profile: errno %d is out of range", *errno)
		}
		data = uint32(*errno)
	}
	switch a {
	case specs.ActKill, specs.ActKillThread:
		return retKillThread, nil
	case specs.ActKillProcess:
		return retKillProcess, nil
	case specs.ActTrap:
		return retTrap, nil
	case specs.ActErrno:
		return retErrno | data, nil
	case specs.ActTrace:
		return retTrace | data, nil
	case specs.ActAllow:
		return retAllow, nil
	case specs.ActLog:
		return retLog, nil
	case specs.ActNotify:
		return 0, fault.New(fault.Unsupported, "seccomp profile: SCMP_ACT_NOTIFY is not supported")
	}
	return 0, fault.New(fault.Invalid, "seccomp profile: action %q is unknown", a)
}

func flagBits(names []specs.LinuxSeccompFlag) (bits uint32, err error) {
	for _, n := range names {
		switch n {
		case "SECCOMP_FILTER_FLAG_TSYNC":
			bits |= flagTSync
		case specs.LinuxSeccompFlagLog:
			bits |= flagLog
		case specs.LinuxSeccompFlagSpecAllow:
			bits |= flagSpecAllow
		default:
			return 0, fault.New(fault.Unsupported, "seccomp profile: flag %q is not supported", n)
		}
	}
	return bits, nil
}

// Actions and the other three lists are what a profile may use, by the names that it uses.
func Actions() []string {
	return []string{string(specs.ActKill), string(specs.ActKillThread), string(specs.ActKillProcess), string(specs.ActTrap),
		string(specs.ActErrno), string(specs.ActTrace), string(specs.ActAllow), string(specs.ActLog)}
}

// Operators compare an argument: see Actions.
func Operators() []string {
	return []string{string(specs.OpNotEqual), string(specs.OpLessThan), string(specs.OpLessEqual), string(specs.OpEqualTo),
		string(specs.OpGreaterEqual), string(specs.OpGreaterThan), string(specs.OpMaskedEqual)}
}

// Flags are those of seccomp(2): see Actions.
func Flags() []string {
	return []string{"SECCOMP_FILTER_FLAG_TSYNC", string(specs.LinuxSeccompFlagLog), string(specs.LinuxSeccompFlagSpecAllow)}
}

// Archs are the architectures whose calls this build knows: see Actions.
func Archs() (out []string) {
	for _, m := range machines {
		out = append(out, m.name)
	}
	return out
}
