package node

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"worknode/kube"
	"worknode/test/harness"
)

const daily = `
apiVersion: v1
kind: Pod
metadata: {name: daily, labels: {app: daily}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: "worknode.test/app:1", command: [/app, serve], stdin: true}
---
apiVersion: v1
kind: Service
metadata: {name: daily}
spec: {selector: {app: daily}, ports: [{port: 80, targetPort: 8080}]}
`

// What people do with kubectl on an ordinary day, beyond get and apply.
func TestKubectlOnAnOrdinaryDay(t *testing.T) {
	n := start(t, harness.Config{})
	k := func(args ...string) string { t.Helper(); return kubectl(t, n, args...) }
	file := n.Root + "/daily.yaml"
	write(t, file, daily)
	k("apply", "-f", file)
	n.WaitReady("daily")

	t.Run("cp", func(t *testing.T) {
		write(t, n.Root+"/sent", "there and back")
		k("cp", n.Root+"/sent", "daily:/tmp/arrived")
		k("cp", "daily:/tmp/arrived", n.Root+"/returned")
		if data, err := os.ReadFile(n.Root + "/returned"); string(data) != "there and back" {
			t.Errorf("%q, %v", data, err)
		}
	})
	t.Run("port-forward", func(t *testing.T) {
		for _, what := range []string{"pod/daily", "service/daily"} {
			port := map[string]string{"pod/daily": ":8080", "service/daily": ":80"}[what]
			lines := follow(t, harness.Binary(t, "kubectl"), "--kubeconfig", n.Place.Kubeconfig(), "port-forward", what, port)
			line, _ := next(t, lines, "the forwarded port")
			address, _, _ := strings.Cut(strings.TrimPrefix(line, "Forwarding from "), " ")
			for range 3 {
				if got, err := get("http://" + address + "/"); strings.TrimSpace(got) != "daily" {
					t.Errorf("%s through %q: %q, %v", what, line, got, err)
				}
			}
		}
	})
	t.Run("exec with input", func(t *testing.T) {
		cmd := exec.Command(harness.Binary(t, "kubectl"), "--kubeconfig", n.Place.Kubeconfig(), "exec", "-i", "daily", "--", "/bin/sh", "-c", "wc -c; echo done >&2; exit 3")
		cmd.Stdin = io.LimitReader(zeros{}, 5<<20)
		out, err := cmd.Output()
		if strings.TrimSpace(string(out)) != "5242880" || cmd.ProcessState.ExitCode() != 3 {
			t.Errorf("counted %q, %v", out, err)
		}
	})
	t.Run("exec of what is not there", func(t *testing.T) {
		_, errs, code := n.Kubectl("exec", "daily", "--", "/no/such/program")
		if code == 0 || !strings.Contains(errs, "/no/such/program") || strings.Count(strings.TrimSpace(errs), "\n") > 0 {
			t.Errorf("exit code %d, said %q", code, errs)
		}
	})
	t.Run("attach", func(t *testing.T) {
		n.Create(kube.Pods, pod("parrot", "echo up; while read line; do echo you said $line; done; echo over; exec /app wait", func(p *v1.Pod) {
			p.Spec.Containers[0].Stdin, p.Spec.Containers[0].StdinOnce = true, true
		}))
		n.WaitReady("parrot")
		cmd := exec.Command(harness.Binary(t, "kubectl"), "--kubeconfig", n.Place.Kubeconfig(), "attach", "-i", "parrot", "-c", "main", "-q")
		cmd.Stdin = strings.NewReader("hello\n")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { cmd.Process.Kill(); cmd.Wait() }()
		logged(t, n, "parrot", "you said hello\nover\n")
	})
	t.Run("run with a terminal", func(t *testing.T) {
		out, errs, code := harness.Command(t, "script", "-qec", harness.Binary(t, "kubectl")+" --kubeconfig "+n.Place.Kubeconfig()+" run once -it --rm --restart=Never --image="+image+" --command -- /bin/sh -c 'sleep 1; tty; echo over'", "/dev/null")
		if code != 0 || !strings.Contains(out, "over") || !strings.Contains(out, `pod "once" deleted`) {
			t.Errorf("exit code %d: %s%s", code, out, errs)
		}
	})
	t.Run("describe", func(t *testing.T) {
		has(t, k("describe", "node"), "Capacity:", "Allocatable:", "cpu:", "Ready", "Container Runtime Version:", "worknode://", "daily", "PodCIDR")
		has(t, k("describe", "service", "daily"), "ClusterIP", "TargetPort:", "8080/TCP", n.WaitReady("daily").Status.PodIP+":8080")
		has(t, k("describe", "endpointslices"), "daily", n.WaitReady("daily").Status.PodIP, "Ready")
		has(t, k("describe", "pod", "daily"), "QoS Class:", "BestEffort", "Image ID:", "Conditions:")
	})
	t.Run("explain and api-resources", func(t *testing.T) {
		has(t, k("api-resources"), "pods", "po", "services", "configmaps", "endpointslices")
		has(t, k("version"), "Server Version: v1.37")
		has(t, k("cluster-info"), "is running at")
		has(t, k("auth", "can-i", "create", "pods"), "yes")
	})
	t.Run("patches of every type", func(t *testing.T) {
		k("create", "configmap", "c", "--from-literal=a=1", "--from-literal=b=2")
		k("patch", "configmap", "c", "--type=json", "-p", `[{"op":"replace","path":"/data/a","value":"3"}]`)
		k("patch", "configmap", "c", "--type=merge", "-p", `{"data":{"b":null,"c":"4"}}`)
		k("patch", "service", "daily", "--type=strategic", "-p", `{"spec":{"ports":[{"port":80,"name":"web"}]}}`)
		if got := k("get", "configmap", "c", "-o", "jsonpath={.data}"); got != `{"a":"3","c":"4"}` {
			t.Errorf("the ConfigMap: %s", got)
		}
		if got := k("get", "service", "daily", "-o", "jsonpath={.spec.ports[0].name} {.spec.ports[0].targetPort}"); got != "web 8080" {
			t.Errorf("the port: %s", got)
		}
		k("annotate", "pod", "daily", "note=x")
		k("annotate", "pod", "daily", "note-")
		k("create", "secret", "generic", "s", "--from-literal=x=y")
		has(t, k("get", "secret", "s", "-o", "jsonpath={.data.x}"), "eQ==")
	})
	t.Run("server-side apply", func(t *testing.T) {
		write(t, n.Root+"/ssa.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ssa}\ndata: {a: '1', b: '2'}\n")
		k("apply", "--server-side", "-f", n.Root+"/ssa.yaml")
		k("apply", "--server-side", "-f", n.Root+"/ssa.yaml")
		write(t, n.Root+"/other.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ssa}\ndata: {a: '9'}\n")
		if _, errs, code := n.Kubectl("apply", "--server-side", "--field-manager=other", "-f", n.Root+"/other.yaml"); code == 0 || !strings.Contains(errs, "conflict") {
			t.Errorf("another manager took the field: exit code %d, %s", code, errs)
		}
		k("apply", "--server-side", "--field-manager=other", "--force-conflicts", "-f", n.Root+"/other.yaml")
		write(t, n.Root+"/ssa.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ssa}\ndata: {c: '3'}\n")
		k("apply", "--server-side", "-f", n.Root+"/ssa.yaml")
		if got := k("get", "configmap", "ssa", "-o", "jsonpath={.data}"); got != `{"a":"9","c":"3"}` {
			t.Errorf("after all applies: %s", got)
		}
	})
	t.Run("a new image restarts the container in its pod", func(t *testing.T) {
		was := n.WaitReady("daily")
		k("set", "image", "pod/daily", "main=worknode.test/app:1-same")
		n.WaitPod("daily", "waiting for the new image", 15*time.Second, func(p *v1.Pod) bool {
			c := container(p, "main")
			return c.State.Waiting != nil && strings.Contains(c.State.Waiting.Reason, "Image")
		})
		k("set", "image", "pod/daily", "main="+image)
		// The wait of the image that could not be had is not this one's.
		p := n.WaitPod("daily", "ready with the old image", 5*time.Second, harness.Ready)
		if p.UID != was.UID || p.Status.PodIP != was.Status.PodIP || container(p, "main").ContainerID == container(was, "main").ContainerID {
			t.Errorf("before: %s %s, after: %s %s", was.UID, was.Status.PodIP, p.UID, p.Status.PodIP)
		}
		if _, errs, code := n.Kubectl("patch", "pod", "daily", "--type=json", "-p", `[{"op":"replace","path":"/spec/containers/0/command","value":["/app","wait"]}]`); code == 0 || !strings.Contains(errs, "pod updates may not change fields") {
			t.Errorf("a pod's command was changed: exit code %d, %s", code, errs)
		}
	})
	t.Run("get -w", func(t *testing.T) {
		lines := follow(t, harness.Binary(t, "kubectl"), "--kubeconfig", n.Place.Kubeconfig(), "get", "pods", "-w", "--no-headers", "-l", "app=watched", "--output-watch-events")
		n.Create(kube.Pods, pod("watched", "exec /app wait"))
		for event := ""; event != "MODIFIED"; {
			line, open := next(t, lines, "a watched change to Running")
			if !open {
				t.Fatal("the watch ended")
			}
			if strings.Contains(line, "Running") {
				event = "MODIFIED"
			}
		}
		k("delete", "pod", "watched", "--wait=false")
		k("wait", "--for=delete", "pod/watched", "--timeout=20s")
		for line := ""; !strings.Contains(line, "DELETED"); {
			var open bool
			if line, open = next(t, lines, "the deletion"); !open {
				t.Fatal("the watch ended")
			}
		}
	})
	t.Run("generated names", func(t *testing.T) {
		write(t, n.Root+"/gen.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {generateName: made-}\nspec: {terminationGracePeriodSeconds: 0, containers: [{name: main, image: \""+image+"\", command: [/app, wait]}]}\n")
		name := strings.TrimSpace(k("create", "-f", n.Root+"/gen.yaml", "-o", "jsonpath={.metadata.name}"))
		if len(name) != len("made-")+5 {
			t.Errorf("the name is %q", name)
		}
		n.WaitReady(name)
	})
	t.Run("force delete", func(t *testing.T) {
		n.Create(kube.Pods, pod("stuck", "trap '' TERM; while :; do sleep 0.1; done", func(p *v1.Pod) { *p.Spec.TerminationGracePeriodSeconds = 600 }))
		p := n.WaitReady("stuck")
		k("delete", "pod", "stuck", "--force", "--grace-period=0")
		n.WaitPod("stuck", "gone", 5*time.Second, harness.Gone)
		n.Until("its processes to end", 10*time.Second, func() bool { return len(n.Cgroups("pod"+string(p.UID))) == 0 })
	})
	t.Run("delete by label and all", func(t *testing.T) {
		k("delete", "pod", "-l", "app=daily", "--timeout=20s")
		k("delete", "pods", "--all", "--timeout=30s")
		if out, _, _ := n.Kubectl("get", "pods"); out != "" {
			t.Errorf("still there:\n%s", out)
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// The kubectl that Debian ships speaks an older protocol here and there.
func TestOlderKubectl(t *testing.T) {
	const old = "/usr/bin/kubectl"
	if _, err := os.Stat(old); err != nil {
		t.Skip("no kubectl of the distribution on this machine")
	}
	n := start(t, harness.Config{Manifests: map[string]string{"a.yaml": daily}})
	n.WaitReady("daily")
	for _, c := range []struct{ args, want string }{
		{"get pods -o wide", "Running"},
		{"describe pod daily", "Container ID"},
		{"logs daily", "serving"},
		{"exec daily -- hostname", "daily"},
		{"label pod daily colour=red", "labeled"},
		{"get all", "service/daily"},
		{"delete pod daily --timeout=20s", "deleted"},
	} {
		out, errs, code := harness.Command(t, old, append([]string{"--kubeconfig", n.Place.Kubeconfig(), "--cache-dir", n.Root + "/old"}, strings.Fields(c.args)...)...)
		if code != 0 || !strings.Contains(out, c.want) {
			t.Errorf("kubectl %s: exit code %d: %s%s", c.args, code, out, errs)
		}
	}
}
