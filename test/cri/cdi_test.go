package cri

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cdiSpec writes a CDI specification; folder is cdi or cdi-late, which wins.
func (n *node) cdiSpec(folder, name, text string) {
	n.t.Helper()
	dir := filepath.Join(n.dir, folder)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

// A device brings its node with the right to use it, variables, mounts, groups and hooks at every stage; an exec gets
// what the container got, also after a restart of the runtime.
func TestCDIDevice(t *testing.T) {
	n := newNode(t)
	data, notes := filepath.Join(n.dir, "data"), filepath.Join(n.dir, "notes")
	for _, dir := range []string{data, notes} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(data, "lib"), []byte("driver\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	hook := func(stage, script string) string {
		return fmt.Sprintf(`{"hookName": %q, "path": "/bin/sh", "args": ["sh", "-c", %q], "env": ["PATH=/bin:/usr/bin"], "timeout": 10}`, stage, script)
	}
	note := func(stage string) string { return hook(stage, "cat >"+filepath.Join(notes, stage)) }
	n.cdiSpec("cdi", "acme.json", `{"cdiVersion": "0.7.0", "kind": "acme.example/gpu", "devices": [{"name": "0", "containerEdits": {
		"env": ["GPU=0", "FROM_IMAGE=cdi"], "additionalGids": [4711],
		"deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/full", "permissions": "rw"}],
		"mounts": [{"hostPath": "`+data+`", "containerPath": "/opt/driver", "options": ["ro", "nosuid", "nodev", "bind"]}],
		"hooks": [`+strings.Join([]string{note("prestart"), note("createRuntime"), note("poststart"), note("poststop"),
		hook("createContainer", "cat >etc/created; ls opt/driver >etc/mounted"), hook("startContainer", "echo $$ >/etc/started")}, ",")+`]}}]}`)
	box := n.podConfig()
	pod := n.runPod(box)
	c := config("c", "sleep 1000")
	c.CDIDevices = []*cri.CDIDevice{{Name: "acme.example/gpu=0"}}
	id := n.run(pod, box, c)
	look := `echo $GPU $FROM_IMAGE; id -G | grep -o 4711; cat /opt/driver/lib; touch /opt/driver/x 2>/dev/null; echo $?
		grep -o '"status":"creating","pid":1' /etc/created; cat /etc/mounted; test -s /etc/started && echo started
		ls -l /dev/gpu0 | cut -c1; (echo x >/dev/gpu0) 2>&1 | grep -o 'No space left'`
	look = strings.ReplaceAll(look, "| cut -c1", "| grep -o '^c'")
	want := "0 cdi\n4711\ndriver\n1\n\"status\":\"creating\",\"pid\":1\nlib\nstarted\nc\nNo space left\n"
	if got := n.sh(id, look); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	n.killRuntime()
	n.start()
	if got := n.sh(id, look); got != want {
		t.Errorf("after a restart got\n%s\nwant\n%s", got, want)
	}
	for stage, text := range map[string]string{"prestart": "created", "createRuntime": "creating", "poststart": "running"} {
		got, err := os.ReadFile(filepath.Join(notes, stage))
		if err != nil || !strings.Contains(string(got), `"id":"`+id+`","status":"`+text+`"`) {
			t.Errorf("%s: %s %v", stage, got, err)
		}
	}
	if _, err := n.cri.StopContainer(n.ctx(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	n.until("poststop hook", func() bool {
		got, _ := os.ReadFile(filepath.Join(notes, "poststop"))
		return strings.Contains(string(got), `"status":"stopped"`)
	})
	n.until("end of the bundle", func() bool {
		left, _ := os.ReadDir(filepath.Join(n.dir, "run", "live", "bundles"))
		return len(left) == 0
	})
}

// What cannot be given is told when the container is created, with what a person can do; what appears later is found.
func TestCDIRefusals(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	plain := func(edits string) string {
		return `{"cdiVersion": "0.6.0", "kind": "acme.example/nic", "devices": [{"name": "a", "containerEdits": ` + edits + `}]}`
	}
	n.cdiSpec("cdi", "broken.yaml", "cdiVersion: [")
	for name, row := range map[string]struct {
		device string
		code   codes.Code
		want   []string
	}{
		"unknown":    {"acme.example/nic=a", codes.NotFound, []string{"acme.example/nic=a", "no specification", "device plugin"}},
		"no name":    {"nonsense", codes.InvalidArgument, []string{`"nonsense"`, "VENDOR/CLASS=DEVICE"}},
		"bad file":   {"acme.example/nic=a", codes.NotFound, []string{"broken.yaml"}},
		"annotation": {"", codes.NotFound, []string{"acme.example/nic=a"}},
	} {
		c := config("c", "sleep 1000")
		if row.device == "" {
			c.Annotations = map[string]string{"cdi.k8s.io/plugin_x": "acme.example/nic=a"}
		} else {
			c.CDIDevices = []*cri.CDIDevice{{Name: row.device}}
		}
		_, err := n.cri.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: box})
		if status.Code(err) != row.code {
			t.Errorf("%s: %v, want %s", name, err, row.code)
		}
		for _, want := range row.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q in it", name, err, want)
			}
		}
	}
	c := config("late", "echo $NIC")
	c.Annotations = map[string]string{"cdi.k8s.io/plugin_x": "acme.example/nic=a"}
	n.cdiSpec("cdi", "nic.json", plain(`{"env": ["NIC=old"]}`))
	n.cdiSpec("cdi-late", "nic.json", plain(`{"env": ["NIC=new"]}`))
	if got := n.output(pod, box, c); got != "new\n" {
		t.Errorf("the later folder does not win: %q", got)
	}

	n.cdiSpec("cdi-late", "nic.json", plain(`{"hooks": [{"hookName": "createRuntime", "path": "/bin/sh", "args": ["sh", "-c", "echo no card; exit 1"]}, {"hookName": "poststop", "path": "/bin/touch", "args": ["touch", "`+n.dir+`/stopped"]}]}`))
	c = config("hook", "sleep 1000")
	c.CDIDevices = []*cri.CDIDevice{{Name: "acme.example/nic=a"}}
	id := n.create(pod, box, c)
	_, err := n.cri.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id})
	if err == nil || !strings.Contains(err.Error(), `createRuntime hook /bin/sh: exit status 1, it said "no card"`) {
		t.Errorf("failing hook: %v", err)
	}
	if s := n.status(id); s.State != cri.ContainerState_CONTAINER_EXITED || s.Reason != "StartError" || s.ExitCode != 128 {
		t.Errorf("after a failed hook: %v", s)
	}
	if _, err := os.Stat(filepath.Join(n.dir, "stopped")); err != nil {
		t.Errorf("poststop after a failed start: %v", err)
	}

	n.cdiSpec("cdi-late", "nic.json", plain(`{"mounts": [{"hostPath": "`+n.dir+`/absent", "containerPath": "/m", "options": ["bind"]}]}`))
	c = config("mount", "sleep 1000")
	c.CDIDevices = []*cri.CDIDevice{{Name: "acme.example/nic=a"}}
	id = n.create(pod, box, c)
	if _, err = n.cri.StartContainer(n.ctx(), &cri.StartContainerRequest{ContainerId: id}); err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("missing driver file: %v", err)
	}
	if _, err := os.Stat(filepath.Join(n.dir, "absent")); err == nil {
		t.Error("a folder was made where a driver's file is missing")
	}
}
