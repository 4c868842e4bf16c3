package node

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"worknode/test/harness"
)

// visit is what the example answers.
type visit struct {
	Greeting, Replica string
	Visits            int64
}

// example is a node with the example on it.
type example struct {
	*harness.Node
	t *testing.T
}

func startExample(t *testing.T) example {
	t.Helper()
	files := map[string]string{}
	all, err := filepath.Glob(filepath.Join(harness.Top(), "example/manifests/*.yaml"))
	if err != nil || len(all) == 0 {
		t.Fatalf("no manifests of the example: %v", err)
	}
	for _, file := range all {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		files[filepath.Base(file)] = string(data)
	}
	e := example{harness.Start(t, harness.Config{Manifests: files, Images: []string{"redis", "web"}, Publish: []int{30080}}), t}
	e.ready()
	return e
}

var replicas = []string{"web-1", "web-2", "web-3"}

// ready waits until the whole application is, and the page answers.
func (e example) ready() {
	e.t.Helper()
	for _, name := range append([]string{"redis"}, replicas...) {
		e.WaitReady(name)
	}
	e.Until("the page to be served", 10*time.Second, func() bool { _, err := e.visit(); return err == nil })
}

func (e example) visit() (v visit, err error) {
	body, err := get("http://" + e.Port(30080) + "/visit")
	if err != nil {
		return v, err
	}
	return v, json.Unmarshal([]byte(body), &v)
}

// count makes visits, each of which must count one more than the last, until every replica has answered.
func (e example) count() (last int64) {
	e.t.Helper()
	seen := map[string]bool{}
	for i := 0; i < 10 || len(seen) < len(replicas); i++ {
		v, err := e.visit()
		if err != nil {
			e.t.Fatalf("visit %d: %v", i, err)
		}
		if last != 0 && v.Visits != last+1 {
			e.t.Fatalf("visit %d after %d", v.Visits, last)
		}
		last, seen[v.Replica] = v.Visits, true
		if i > 200 {
			e.t.Fatalf("after %d visits only these answered: %v", i, slices.Sorted(maps.Keys(seen)))
		}
	}
	return last
}

// The example as the README tells it.
func TestExample(t *testing.T) {
	e := startExample(t)
	t.Run("visits count up across the replicas", func(t *testing.T) { e.count() })
	t.Run("the page tells a person", func(t *testing.T) {
		page, err := get("http://" + e.Port(30080) + "/")
		if err != nil {
			t.Fatal(err)
		}
		has(t, page, "<!doctype html>", "Hello from worknode", "Answered by <b>web-")
	})
	t.Run("the Service answers inside too", func(t *testing.T) {
		has(t, sh(t, e.Node, "redis", "wget -qO- http://web/visit || wget -qO- http://$WEB_SERVICE_HOST/visit"), `"replica":"web-`)
	})
	t.Run("a changed greeting reaches the page", func(t *testing.T) {
		data, err := os.ReadFile(e.Dir + "/10-config.yaml")
		if err != nil {
			t.Fatal(err)
		}
		e.Write("10-config.yaml", strings.Replace(string(data), "Hello from worknode", "Good evening", 1))
		e.Until("all replicas to say good evening", 10*time.Second, func() bool {
			for range 12 {
				if v, err := e.visit(); err != nil || v.Greeting != "Good evening" {
					return false
				}
			}
			return true
		})
	})
	t.Run("a replaced redis remembers", func(t *testing.T) {
		before := e.count()
		was := e.WaitReady("redis")
		if err := syscall.Kill(e.redisPid(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		e.WaitPod("redis", "restarted", 20*time.Second, func(p *v1.Pod) bool {
			return p.Status.ContainerStatuses[0].RestartCount == 1 && harness.Ready(p)
		})
		e.ready()
		if v, err := e.visit(); err != nil || v.Visits <= before {
			t.Errorf("visit %d after %d, %v", v.Visits, before, err)
		}
		if now := e.WaitReady("redis"); now.Status.PodIP != was.Status.PodIP || now.UID != was.UID {
			t.Error("the pod was replaced, not its container")
		}
	})
	t.Run("no replica takes visitors while redis is away", func(t *testing.T) {
		pid := e.redisPid()
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		defer syscall.Kill(pid, syscall.SIGCONT)
		for _, name := range replicas {
			e.WaitPod(name, "not ready", 15*time.Second, func(p *v1.Pod) bool { return !harness.Ready(p) })
		}
		e.Until("the page to be refused", 5*time.Second, func() bool { _, err := e.visit(); return err != nil })
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		e.ready()
		for _, name := range replicas {
			if c := e.WaitReady(name).Status.ContainerStatuses[0]; c.RestartCount != 0 {
				t.Errorf("%s was restarted", name)
			}
		}
	})
	t.Run("Ctrl-C leaves nothing, and the next start works", func(t *testing.T) {
		e.Stop()
		for _, what := range e.Leftovers() {
			t.Errorf("left behind: %s", what)
		}
		e.Relaunch()
		e.ready()
		e.count()
	})
	t.Run("killed as a whole, it is adopted", func(t *testing.T) {
		before := e.count()
		was := map[string]string{}
		for _, name := range append([]string{"redis"}, replicas...) {
			was[name] = e.WaitReady(name).Status.ContainerStatuses[0].ContainerID
		}
		var pids []int
		for _, name := range []string{"kubelet", "proxy", "runtime", "monitor", "supervisor"} {
			if name != "supervisor" {
				syscall.Kill(e.Pid(name), syscall.SIGSTOP) // so that nobody repairs anything meanwhile
			}
			pids = append(pids, e.Pid(name))
		}
		e.KillAll(pids)
		e.Relaunch()
		e.ready()
		if after := e.count(); after <= before {
			t.Errorf("visit %d after %d", after, before)
		}
		for name, id := range was {
			if c := e.WaitReady(name).Status.ContainerStatuses[0]; c.ContainerID != id || c.RestartCount != 0 {
				t.Errorf("%s was restarted", name)
			}
		}
	})
}

// redisPid finds the server in its pod's cgroup.
func (e example) redisPid() int {
	e.t.Helper()
	_, id, _ := strings.Cut(e.WaitReady("redis").Status.ContainerStatuses[0].ContainerID, "://")
	for _, group := range e.Cgroups(id) {
		data, _ := os.ReadFile(group + "/cgroup.procs")
		for _, word := range strings.Fields(string(data)) {
			if comm, _ := os.ReadFile("/proc/" + word + "/comm"); string(comm) == "redis-server\n" {
				pid, err := strconv.Atoi(word)
				if err == nil {
					return pid
				}
			}
		}
	}
	e.t.Fatalf("no redis-server in the cgroups of container %s", id)
	return 0
}
