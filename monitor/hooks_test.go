package monitor_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"worknode/kernel/cgroup"
	"worknode/monitor/hook"
	"worknode/monitor/wire"
)

// told is what a test's hook wrote down of itself.
type told struct {
	Stage, Mnt, UTS, Cwd, UID, Umask string
	State                            wire.State
}

// noting is a hook that writes down how it was called. log is where, as the hook sees it.
func noting(stage, log string) wire.Hook {
	const script = `printf '{"Stage":"%s","Mnt":"%s","UTS":"%s","Cwd":"%s","UID":"%s","Umask":"%s","State":' \
		"$STAGE" "$(readlink /proc/self/ns/mnt)" "$(readlink /proc/self/ns/uts)" "$(pwd)" "$(id -u)" "$(umask)" >>"$LOG"; cat >>"$LOG"; echo '}' >>"$LOG"; chmod 666 "$LOG" 2>/dev/null || true`
	return wire.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin:/usr/bin", "STAGE=" + stage, "LOG=" + log}, Timeout: 10 * time.Second}
}

func shell(script string) wire.Hook {
	return wire.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin:/usr/bin"}, Timeout: 10 * time.Second}
}

// alive reports whether processes are left in a cgroup.
func (n *node) alive(group string) bool {
	pids, err := tree.Procs(group)
	if err != nil {
		n.t.Fatal(err)
	}
	return len(pids) > 0
}

func (n *node) told(file string) []told {
	n.t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		n.t.Fatal(err)
	}
	var out []told
	for line := range strings.Lines(string(text)) {
		var v told
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			n.t.Fatalf("%v: %s", err, line)
		}
		out = append(out, v)
	}
	return out
}

// Every stage in its order, its namespaces and its directory, told the right state; root is sealed only afterwards.
func TestHooks(t *testing.T) {
	for _, users := range []string{"host", "own"} {
		t.Run(users, func(t *testing.T) {
			n := newNode(t)
			if err := os.Chmod(n.dir, 0o711); err != nil {
				t.Fatal(err)
			}
			notes := filepath.Join(n.dir, "notes")
			if err := os.Mkdir(notes, 0o777); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(notes, 0o777); err != nil {
				t.Fatal(err)
			}
			bundle, log, inner := filepath.Join(n.dir, "bundle"), filepath.Join(notes, "host"), filepath.Join(notes, "inner")
			if err := os.Mkdir(bundle, 0o711); err != nil {
				t.Fatal(err)
			}
			s := n.container("c", "sh", "-c", "cat /etc/made /etc/late; readlink /proc/self/ns/mnt; readlink /proc/self/ns/uts; touch /x 2>/dev/null; echo ro $?; sleep 1000")
			if users == "own" {
				n.mapped(&s)
			}
			n.limited(&s, cgroup.Resources{})
			s.Init.Root.Readonly, s.Init.UID = true, 1000
			s.Init.Mounts = append(s.Init.Mounts,
				wire.Mount{Source: notes, Destination: "/notes", Flags: unix.MS_BIND | unix.MS_REC},
				wire.Mount{Source: "tmpfs", Destination: "/etc", Type: "tmpfs", Flags: unix.MS_NOSUID, Data: "mode=777"})
			s.Hooks = &wire.Hooks{
				State:           wire.State{Version: "1.3.0", ID: "c", Bundle: bundle, Annotations: map[string]string{"a": strings.Repeat("b", 200_000)}},
				Prestart:        []wire.Hook{noting("prestart", log)},
				CreateRuntime:   []wire.Hook{noting("createRuntime", log), noting("createRuntime", log)},
				CreateContainer: []wire.Hook{noting("createContainer", inner), shell("echo made >etc/made; test -e " + s.Init.Root.Upper + "/etc/made")},
				StartContainer:  []wire.Hook{noting("startContainer", "/notes/inner"), shell("echo late >/etc/late")},
				Poststart:       []wire.Hook{noting("poststart", log)},
			}
			p := n.start(s)
			var lines []string
			n.eventually("five lines of output", func() bool {
				lines = strings.Fields(strings.ReplaceAll(n.logText("c"), "ro ", "ro-"))
				return len(lines) == 5
			})
			mnt, uts := lines[2], lines[3]
			if lines[0] != "made" || lines[1] != "late" || lines[4] != "ro-1" {
				t.Errorf("the container says %q", lines)
			}
			host := n.told(log)
			hostMnt, _ := os.Readlink("/proc/self/ns/mnt")
			stages := []string{"prestart created", "createRuntime creating", "createRuntime creating", "poststart running"}
			if len(host) != len(stages) {
				t.Fatalf("%d hooks ran on the host", len(host))
			}
			for i, v := range host {
				if got := v.Stage + " " + v.State.Status; got != stages[i] || v.Mnt != hostMnt || v.Cwd != bundle || v.UID != "0" || v.State.Pid != p.Pid ||
					v.State.ID != "c" || v.State.Version != "1.3.0" || v.State.Bundle != bundle || len(v.State.Annotations["a"]) != 200_000 {
					v.State.Annotations = nil
					t.Errorf("hook %d: %+v, want %s of pid %d", i, v, stages[i], p.Pid)
				}
			}
			in := n.told(inner)
			if len(in) != 2 {
				t.Fatalf("%d hooks ran in the container", len(in))
			}
			if v := in[0]; v.Stage != "createContainer" || v.Mnt != mnt || v.UTS != uts || v.Mnt == hostMnt || v.State.Status != "creating" || v.State.Pid != 1 || v.UID != "0" || v.Umask != "0022" {
				t.Errorf("%+v", v)
			}
			if v := in[1]; v.Stage != "startContainer" || v.Mnt != mnt || v.UTS != uts || v.State.Status != "created" || v.State.Pid != 1 || v.UID != "1000" || v.Cwd != "/" {
				t.Errorf("%+v", v)
			}
		})
	}
}

// A hook that fails ends the start, whatever the stage: nothing after it runs, no process stays, the words of the hook arrive.
func TestHookFails(t *testing.T) {
	stages := []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart"}
	for name, tc := range map[string]struct {
		bad  wire.Hook
		want string
	}{
		"status":       {shell("echo no such card >&2; exit 3"), `exit status 3, it said "no such card"`},
		"absent":       {wire.Hook{Path: "/absent/hook"}, "no such file"},
		"relative":     {wire.Hook{Path: "bin/sh"}, "not absolute"},
		"signal":       {shell("kill -9 $$"), "signal 9"},
		"too long":     {wire.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "sleep 1000 & sleep 1000"}, Timeout: 100 * time.Millisecond, Env: env}, "longer than 100ms"},
		"never reads":  {shell("exec 0<&-; exit 4"), "exit status 4"},
		"talks a lot":  {shell("yes | head -c 1000000; exit 5"), "exit status 5"},
		"leaves a son": {shell("sleep 3 & exit 6"), "exit status 6"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			for i, stage := range stages {
				log := filepath.Join(n.dir, "log-"+stage)
				id := "c" + strconv.Itoa(i)
				s := n.container(id, "sh", "-c", "echo ran; sleep 1000")
				group := n.limited(&s, cgroup.Resources{})
				h := &wire.Hooks{State: wire.State{ID: id, Bundle: n.dir}}
				s.Hooks = h
				for j, list := range []*[]wire.Hook{&h.Prestart, &h.CreateRuntime, &h.CreateContainer, &h.StartContainer, &h.Poststart} {
					if j == i {
						*list = []wire.Hook{tc.bad, noting("after", log)}
					} else if stages[j] != "startContainer" {
						*list = []wire.Hook{noting(stages[j], log)}
					}
				}
				began := time.Now()
				_, _, err := n.c.Start(n.ctx(), s, nil)
				var staged *wire.StageError
				if err == nil || !errors.As(err, &staged) || staged.Stage != "hook" || !strings.Contains(err.Error(), stage+" hook "+tc.bad.Path) || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%s: %v, want %q", stage, err, tc.want)
				}
				if took := time.Since(began); took > 3*time.Second {
					t.Errorf("%s: took %v", stage, took)
				}
				ran := 0
				if text, err := os.ReadFile(log); err == nil {
					ran = strings.Count(string(text), `"Stage"`)
				}
				if want := min(i, 3); ran != want {
					t.Errorf("%s: %d other hooks ran, want %d", stage, ran, want)
				}
				n.eventually("the container is gone", func() bool { return !n.alive(group) })
			}
			list, err := n.c.List(n.ctx())
			if err != nil || len(list) != 0 {
				t.Errorf("the monitor keeps %v %v", list, err)
			}
		})
	}
}

// A monitor that is killed amid a hook takes the start along, and nothing of the container stays.
func TestMonitorKilledAmidHook(t *testing.T) {
	n := newNode(t)
	s := n.container("c", "sleep", "1000")
	group := n.limited(&s, cgroup.Resources{})
	at := filepath.Join(n.dir, "at")
	s.Hooks = &wire.Hooks{State: wire.State{ID: "c", Bundle: n.dir}, CreateRuntime: []wire.Hook{shell("echo >" + at + "; sleep 2")}}
	done := make(chan error, 1)
	go func() {
		_, _, err := n.c.Start(n.ctx(), s, nil)
		done <- err
	}()
	n.eventually("the hook runs", func() bool { _, err := os.Stat(at); return err == nil })
	n.crash()
	if err := <-done; err == nil {
		t.Error("the start succeeded")
	}
	n.eventually("the container is gone", func() bool { return !n.alive(group) })
	n.boot()
	n.start(n.container("c2", "sleep", "1000"))
}

func TestHookRunner(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	state := wire.State{Version: "1.3.0", ID: "x", Status: "stopped", Bundle: "/b"}
	err := hook.Runner{Dir: "/"}.Run("poststop", []wire.Hook{{Path: "/bin/sh", Args: []string{"a", "-c", fmt.Sprintf(`cat >%s; echo >>%[1]s; echo "$0 $A $PWD $HOME" >>%[1]s`, out)}, Env: []string{"A=b"}}}, state)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := os.ReadFile(out)
	if want := `{"ociVersion":"1.3.0","id":"x","status":"stopped","bundle":"/b"}` + "\na b / \n"; string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
