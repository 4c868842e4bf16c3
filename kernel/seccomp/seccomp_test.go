package seccomp

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	profiles "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"worknode/fault"
)

// withDefault is the program of Moby's default profile for a container with these capabilities.
func withDefault(caps []string) (Program, error) {
	profile, err := profiles.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}})
	if err != nil {
		return Program{}, err
	}
	return Compile(profile)
}

// parsed is the program of a profile's text.
func parsed(text string) (Program, error) {
	var profile specs.LinuxSeccomp
	if err := json.Unmarshal([]byte(text), &profile); err != nil {
		return Program{}, err
	}
	return Compile(&profile)
}

// interpret runs a filter as the kernel would.
func interpret(t *testing.T, p Program, audit, number uint32, args [6]uint64) uint32 {
	t.Helper()
	var data [64]byte
	binary.NativeEndian.PutUint32(data[offNumber:], number)
	binary.NativeEndian.PutUint32(data[offArch:], audit)
	for i, a := range args {
		binary.NativeEndian.PutUint64(data[offArgs+8*i:], a)
	}
	var a uint32
	for pc := 0; pc < len(p.Filter)/8; pc++ {
		i := p.Filter[8*pc:]
		code, jt, jf, k := binary.NativeEndian.Uint16(i), int(i[2]), int(i[3]), binary.NativeEndian.Uint32(i[4:])
		jump := func(yes bool) {
			if yes {
				pc += jt
			} else {
				pc += jf
			}
		}
		switch code {
		case loadWord:
			a = binary.NativeEndian.Uint32(data[k:])
		case andWith:
			a &= k
		case jumpAll:
			pc += int(k)
		case jumpEqual:
			jump(a == k)
		case jumpGT:
			jump(a > k)
		case jumpGE:
			jump(a >= k)
		case returnK:
			return k
		default:
			t.Fatalf("instruction %d has code %#x", pc, code)
		}
	}
	t.Fatal("the program ran off its end")
	return 0
}

func number(t *testing.T, m machine, name string) uint32 {
	t.Helper()
	n, ok := m.numbers()[name]
	if !ok {
		t.Fatalf("no %s on %s", name, m.name)
	}
	return n
}

// TestOperators compares every operator with plain arithmetic, on values around the 32-bit seam.
func TestOperators(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	value := func() uint64 {
		edges := []uint64{0, 1, 2, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<32 + 1, 1<<63 - 1, 1 << 63, ^uint64(0)}
		if rng.IntN(2) == 0 {
			return edges[rng.IntN(len(edges))]
		}
		return rng.Uint64() & (1<<rng.IntN(64) - 1)
	}
	ops := map[specs.LinuxSeccompOperator]func(a, v, w uint64) bool{
		specs.OpEqualTo: func(a, v, _ uint64) bool { return a == v }, specs.OpNotEqual: func(a, v, _ uint64) bool { return a != v },
		specs.OpLessThan: func(a, v, _ uint64) bool { return a < v }, specs.OpLessEqual: func(a, v, _ uint64) bool { return a <= v },
		specs.OpGreaterThan: func(a, v, _ uint64) bool { return a > v }, specs.OpGreaterEqual: func(a, v, _ uint64) bool { return a >= v },
		specs.OpMaskedEqual: func(a, v, w uint64) bool { return a&v == w },
	}
	lseek := number(t, machines[0], "lseek")
	for range 3000 {
		var args []specs.LinuxSeccompArg
		for i := range 1 + rng.IntN(3) {
			names := []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpMaskedEqual}
			args = append(args, specs.LinuxSeccompArg{Index: uint(i * 2 % 6), Op: names[rng.IntN(len(names))], Value: value(), ValueTwo: value()})
		}
		p, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"lseek"}, Action: specs.ActErrno, ErrnoRet: new(uint(77)), Args: args}}})
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			var have [6]uint64
			for i := range have {
				have[i] = value()
			}
			for _, a := range args { // hit equality often
				if rng.IntN(2) == 0 {
					have[a.Index] = a.Value
				}
			}
			want := uint32(retErrno | 77)
			for _, a := range args {
				if !ops[a.Op](have[a.Index], a.Value, a.ValueTwo) {
					want = retAllow
				}
			}
			if got := interpret(t, p, machines[0].audit, lseek, have); got != want {
				t.Fatalf("%+v with %#x: %#x, want %#x", args, have, got, want)
			}
		}
	}
}

// TestRepeatedArgument: several conditions on one argument mean any of them.
func TestRepeatedArgument(t *testing.T) {
	p, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"personality"}, Action: specs.ActAllow,
		Args: []specs.LinuxSeccompArg{{Index: 0, Value: 0, Op: specs.OpEqualTo}, {Index: 0, Value: 8, Op: specs.OpEqualTo}}}}})
	if err != nil {
		t.Fatal(err)
	}
	n := number(t, machines[0], "personality")
	for arg, want := range map[uint64]uint32{0: retAllow, 8: retAllow, 4: retErrno | eperm} {
		if got := interpret(t, p, machines[0].audit, n, [6]uint64{arg}); got != want {
			t.Errorf("personality(%d): %#x, want %#x", arg, got, want)
		}
	}
}

// TestManyValues: a set of allowed values behaves as the single rules would.
func TestManyValues(t *testing.T) {
	var calls []specs.LinuxSyscall
	for _, v := range []uint64{3, 4, 5, 9, 1<<32 - 1} {
		calls = append(calls, specs.LinuxSyscall{Names: []string{"socket"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 1, Value: v, Op: specs.OpEqualTo}}})
	}
	p, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: calls})
	if err != nil {
		t.Fatal(err)
	}
	n := number(t, machines[0], "socket")
	for arg, want := range map[uint64]uint32{0: retErrno | 1, 2: retErrno | 1, 3: retAllow, 5: retAllow, 6: retErrno | 1, 9: retAllow, 10: retErrno | 1,
		1<<32 - 2: retErrno | 1, 1<<32 - 1: retAllow, 1<<32 + 3: retErrno | 1} {
		if got := interpret(t, p, machines[0].audit, n, [6]uint64{0, arg}); got != want {
			t.Errorf("socket(_, %d): %#x, want %#x", arg, got, want)
		}
	}
}

// TestDefaultProfile walks every call of both architectures and compares the program with the profile it was made of.
func TestDefaultProfile(t *testing.T) {
	caps := []string{"CAP_CHOWN", "CAP_KILL"}
	p, err := withDefault(caps)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(p.Filter) / 8; n > 600 {
		t.Errorf("the default profile needs %d instructions: each costs time at every start", n)
	} else {
		t.Logf("%d instructions", n)
	}
	native := func(name string) uint32 {
		return interpret(t, p, machines[0].audit, number(t, machines[0], name), [6]uint64{1 << 20})
	}
	for _, name := range []string{"read", "openat", "execve", "futex", "epoll_wait", "getrandom", "statx", "clone3", "rseq"} {
		want := uint32(retAllow)
		if name == "clone3" {
			want = retErrno | enosys // so that libc falls back to clone, whose flags a filter can see
		}
		if got := native(name); got != want {
			t.Errorf("%s: %#x, want %#x", name, got, want)
		}
	}
	for _, name := range []string{"mount", "bpf", "kexec_load", "init_module", "reboot", "keyctl", "unshare", "setns", "pivot_root"} {
		if got := native(name); got != retErrno|eperm {
			t.Errorf("%s: %#x, want EPERM", name, got)
		}
	}
	if got := interpret(t, p, machines[0].audit, 10000, [6]uint64{}); got != retErrno|enosys {
		t.Errorf("a call of the future: %#x, want ENOSYS", got)
	}
	if got := interpret(t, p, machines[1].audit, number(t, machines[1], "read"), [6]uint64{}); got != retAllow {
		t.Errorf("a 32-bit program cannot read: %#x", got)
	}
	if got := interpret(t, p, 0x1234, 0, [6]uint64{}); got != retKillProcess {
		t.Errorf("a foreign architecture: %#x", got)
	}
	if machines[0].audit == auditX86_64 {
		if got := interpret(t, p, machines[0].audit, x32Bit|1, [6]uint64{}); got != retErrno|enosys {
			t.Errorf("x32: %#x", got)
		}
	}
	admin, err := withDefault([]string{"CAP_SYS_ADMIN"})
	if err != nil {
		t.Fatal(err)
	}
	if got := interpret(t, admin, machines[0].audit, number(t, machines[0], "mount"), [6]uint64{}); got != retAllow {
		t.Errorf("mount with CAP_SYS_ADMIN: %#x", got)
	}
}

func TestBadProfiles(t *testing.T) {
	for name, row := range map[string]struct {
		text string
		kind fault.Kind
	}{
		"action":   {`{"defaultAction":"SCMP_ACT_NOPE","syscalls":[]}`, fault.Invalid},
		"operator": {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_KILL","args":[{"index":0,"value":1,"op":"SCMP_CMP_ODD"}]}]}`, fault.Invalid},
		"argument": {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_KILL","args":[{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]}]}`, fault.Invalid},
		"notify":   {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_NOTIFY"}]}`, fault.Unsupported},
		"flag":     {`{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],"syscalls":[{"names":["read"],"action":"SCMP_ACT_KILL"}]}`, fault.Unsupported},
	} {
		if _, err := parsed(row.text); fault.Of(err) != row.kind {
			t.Errorf("%s: %v, want kind %s", name, err, row.kind)
		}
	}
	p, err := parsed(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["no_such_call","getpid"],"action":"SCMP_ACT_KILL_PROCESS"}]}`)
	if err != nil {
		t.Fatal(err)
	}
	if got := interpret(t, p, machines[0].audit, number(t, machines[0], "getpid"), [6]uint64{}); got != retKillProcess {
		t.Errorf("getpid: %#x", got)
	}
}

// TestInKernel loads the default profile in a child and sees what the kernel makes of it.
func TestInKernel(t *testing.T) {
	if os.Getenv("SECCOMP_TEST_CHILD") != "" {
		child()
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestInKernel$")
	cmd.Env = append(os.Environ(), "SECCOMP_TEST_CHILD=1")
	out, err := cmd.CombinedOutput()
	want := "getppid works\nunshare operation not permitted\nfuture function not implemented\nsocket works\nvsock operation not permitted\n"
	if err != nil || !strings.Contains(string(out), want) {
		t.Errorf("%v\n%s", err, out)
	}
}

func child() {
	runtime.LockOSThread()
	p, err := withDefault([]string{"CAP_CHOWN"})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	prog := unix.SockFprog{Len: uint16(len(p.Filter) / 8), Filter: (*unix.SockFilter)(unsafe.Pointer(&p.Filter[0]))}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(p.Flags), uintptr(unsafe.Pointer(&prog))); errno != 0 {
		fmt.Println("load:", errno)
		os.Exit(1)
	}
	say := func(name string, nr, a, b uintptr) {
		if _, _, errno := unix.RawSyscall(nr, a, b, 0); errno != 0 {
			fmt.Println(name, errno)
			return
		}
		fmt.Println(name, "works")
	}
	say("getppid", unix.SYS_GETPPID, 0, 0)
	say("unshare", unix.SYS_UNSHARE, unix.CLONE_NEWNS, 0)
	say("future", 4000, 0, 0)
	say("socket", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM)
	say("vsock", unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM)
	os.Exit(0)
}

// TestTables: the text tables say what x/sys says.
func TestTables(t *testing.T) {
	n := machines[0].numbers()
	for name, want := range map[string]uint32{"read": unix.SYS_READ, "execve": unix.SYS_EXECVE, "clone3": unix.SYS_CLONE3, "openat2": unix.SYS_OPENAT2, "seccomp": unix.SYS_SECCOMP, "mseal": unix.SYS_MSEAL} {
		if n[name] != want {
			t.Errorf("%s is %d, want %d", name, n[name], want)
		}
	}
	if !slices.ContainsFunc(machines[:], func(m machine) bool { return m.audit == unix.AUDIT_ARCH_X86_64 || m.audit == unix.AUDIT_ARCH_AARCH64 }) {
		t.Error("the native architecture is missing")
	}
}

func BenchmarkCompile(b *testing.B) {
	for range b.N {
		if _, err := withDefault([]string{"CAP_CHOWN"}); err != nil {
			b.Fatal(err)
		}
	}
}
