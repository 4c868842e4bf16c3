package kubelet

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// What each folder of this room may import of the module beside fault, task and version. Side rooms are strangers to
// each other; only act and the room's root know them. A new folder has to be written down here.
var mayImport = map[string][]string{
	".": {"kube", "kubelet/*", "kernel/cgroup", "kernel/cpulist"},
	"act": {"kubelet/cgroups", "kubelet/logs", "kubelet/object", "kubelet/plan", "kubelet/state", "kubelet/translate",
		"kubelet/volume", "kernel/*"},
	"plan":        {"kubelet/state"},
	"state":       {},
	"source":      {"kube", "defaults", "validate", "strict"},
	"mirror":      {"kube"},
	"status":      {"kube"},
	"translate":   {},
	"volume":      {"kernel/*", "kubelet/translate"},
	"object":      {"kube"},
	"cgroups":     {"kernel/*", "kubelet/translate"},
	"probe":       {},
	"node":        {"kube", "kernel/cpulist"},
	"api":         {"kubelet/api/*"},
	"api/crilog":  {},
	"api/access":  {"kube"},
	"event":       {"kube"},
	"logs":        {},
	"config":      {"strict", "merge", "kernel/cpulist"},
	"certificate": {"kube"},
}

// Packages that decide may not touch the world: no clock to read, no disk, no network, no log.
var pure = []string{"plan", "state", "translate"}

var worldly = []string{"os", "os/exec", "net", "net/http", "log", "log/slog", "syscall", "math/rand", "math/rand/v2", "golang.org/x/sys/unix", "google.golang.org/grpc"}

func TestWalls(t *testing.T) {
	seen := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.Contains(path, "testdata") {
			return err
		}
		folder := filepath.ToSlash(filepath.Dir(path))
		seen[folder] = true
		allowed, known := mayImport[folder]
		if !known {
			t.Errorf("%s: folder %s is not in the table of walls", path, folder)
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, imp := range f.Imports {
			name, _ := strconv.Unquote(imp.Path.Value)
			// net in translate joins a host and a port, no more.
			if slices.Contains(pure, folder) && slices.Contains(worldly, name) && !(folder == "translate" && name == "net") {
				t.Errorf("%s imports %s: %s is pure", path, name, folder)
			}
			if strings.HasPrefix(name, "k8s.io/kubernetes") || strings.HasPrefix(name, "k8s.io/client-go/kubernetes") {
				t.Errorf("%s imports %s: too heavy, and not ours", path, name)
			}
			own, ok := strings.CutPrefix(name, "worknode/")
			if ok && !slices.Contains([]string{"fault", "task", "version"}, own) && !slices.ContainsFunc(allowed, func(a string) bool { return match(a, own) }) {
				t.Errorf("%s imports %s: %s may not know it", path, name, folder)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for folder := range mayImport {
		if !seen[folder] {
			t.Errorf("folder %s is in the table of walls and has no code", folder)
		}
	}
}

func match(pattern, name string) bool {
	prefix, any := strings.CutSuffix(pattern, "*")
	return any && strings.HasPrefix(name, prefix) || pattern == name
}

// The plan takes the time as an argument.
func TestPlanHasNoClock(t *testing.T) {
	for _, folder := range pure {
		files, err := filepath.Glob(filepath.Join(folder, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: no files, %v", folder, err)
		}
		for _, path := range files {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			if text := read(t, path); strings.Contains(text, "time.Now(") || strings.Contains(text, "time.Sleep(") || strings.Contains(text, "time.After(") {
				t.Errorf("%s reads a clock", path)
			}
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
