// Package walls holds the tests of the architecture: who may import whom, and what pure code must not touch.
package walls

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "worknode/"

type pkg struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
	Deps       []string
}

// packages lists the product's packages as the go command sees them.
func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports,Deps", module+"...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			t.Fatalf("go list: %s", failed.Stderr)
		}
		t.Fatal(err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 20 {
		t.Fatalf("go list knows only %d packages: the test looks in the wrong place", len(all))
	}
	return all
}

var rooms = []string{"runtime", "kubelet", "proxy"}

// room is the first folder of a package of ours, empty for anybody else's.
func room(importPath string) string {
	rest, ours := strings.CutPrefix(importPath, module)
	if !ours {
		return ""
	}
	first, _, _ := strings.Cut(rest, "/")
	return first
}

func within(importPath, folder string) bool {
	return importPath == module+folder || strings.HasPrefix(importPath, module+folder+"/")
}

func TestRoomsAreStrangers(t *testing.T) {
	for _, p := range packages(t) {
		mine := room(p.ImportPath)
		for _, i := range p.Imports {
			theirs := room(i)
			if !slices.Contains(rooms, theirs) || theirs == mine {
				continue
			}
			if mine == "cmd" && (i == module+theirs || i == module+theirs+"/config") {
				continue // main wires the rooms, by their front door, and reads what they are told
			}
			if mine == "test" {
				continue
			}
			t.Errorf("%s imports %s: rooms meet only over their standard interfaces", p.ImportPath, i)
		}
	}
}

// core are the folders of a room that belong together; every other folder is a side room.
// translate is pure, as a plan is; config names what the side rooms are told.
var core = []string{"", "api", "state", "plan", "act", "loop", "translate", "config"}

func TestSideRoomsAreStrangers(t *testing.T) {
	side := func(importPath string) string {
		if !slices.Contains(rooms, room(importPath)) {
			return ""
		}
		_, rest, _ := strings.Cut(strings.TrimPrefix(importPath, module), "/")
		first, _, _ := strings.Cut(rest, "/")
		if slices.Contains(core, first) {
			return ""
		}
		return first
	}
	for _, p := range packages(t) {
		mine := side(p.ImportPath)
		for _, i := range p.Imports {
			if theirs := side(i); mine != "" && theirs != "" && mine != theirs && room(i) == room(p.ImportPath) {
				t.Errorf("%s imports %s: side rooms know only their own job; let the loop carry between them", p.ImportPath, i)
			}
		}
	}
}

func TestPlansArePure(t *testing.T) {
	banned := []string{"os", "os/exec", "net", "net/http", "log", "log/slog", "syscall", "math/rand", "math/rand/v2", "golang.org/x/sys/unix"}
	for _, p := range packages(t) {
		if path.Base(p.ImportPath) != "plan" || !slices.Contains(rooms, room(p.ImportPath)) {
			continue
		}
		for _, i := range p.Imports {
			if slices.Contains(banned, i) || within(i, "kernel") || within(i, "monitor") || within(i, room(p.ImportPath)+"/act") {
				t.Errorf("%s imports %s: a plan is a function of its arguments", p.ImportPath, i)
			}
		}
		calls(t, p, func(pos token.Position, call string) {
			if slices.Contains([]string{"time.Now", "time.Since", "time.Until", "time.Sleep", "time.After"}, call) {
				t.Errorf("%s: %s in a plan: pass now in", pos, call)
			}
		})
	}
}

func TestOnlyKernelAndMonitorMakeRawSystemCalls(t *testing.T) {
	raw := []string{"Syscall", "Syscall6", "RawSyscall", "RawSyscall6", "Mount", "Unmount", "Unshare", "Setns", "PivotRoot", "Prctl", "PidfdOpen", "Socket"}
	for _, p := range packages(t) {
		if r := room(p.ImportPath); r == "kernel" || r == "monitor" || r == "test" || r == "tools" {
			continue
		}
		calls(t, p, func(pos token.Position, call string) {
			if pack, name, _ := strings.Cut(call, "."); (pack == "unix" || pack == "syscall") && slices.Contains(raw, name) {
				t.Errorf("%s: %s outside kernel/ and monitor/", pos, call)
			}
		})
	}
}

// calls reports every pack.Name(...) in a package's own files.
func calls(t *testing.T, p pkg, report func(token.Position, string)) {
	t.Helper()
	files := token.NewFileSet()
	for _, name := range p.GoFiles {
		file, err := parser.ParseFile(files, filepath.Join(p.Dir, name), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if sel, ok := call.Fun.(*ast.SelectorExpr); ok {
					if x, ok := sel.X.(*ast.Ident); ok {
						report(files.Position(call.Pos()), x.Name+"."+sel.Sel.Name)
					}
				}
			}
			return true
		})
	}
}

func TestMonitorStaysSmall(t *testing.T) {
	for _, p := range packages(t) {
		if !within(p.ImportPath, "monitor") && !within(p.ImportPath, "cmd/worknode-monitor") {
			continue
		}
		for _, i := range p.Deps {
			if strings.HasPrefix(i, "k8s.io/") || strings.HasPrefix(i, "google.golang.org/") || i == "net/http" || slices.Contains(rooms, room(i)) {
				t.Errorf("%s depends on %s: the monitor's memory is the node's price per pod", p.ImportPath, i)
			}
		}
	}
}

func TestNothingOfUpstreamsInsides(t *testing.T) {
	for _, p := range packages(t) {
		for _, i := range p.Deps {
			if i == "k8s.io/kubernetes" || strings.HasPrefix(i, "k8s.io/kubernetes/") || strings.HasPrefix(i, "github.com/opencontainers/runc") {
				t.Errorf("%s depends on %s: the product stands on the published modules", p.ImportPath, i)
			}
		}
	}
}
