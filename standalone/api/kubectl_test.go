package api

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"worknode/standalone/store"
)

// kubectl runs the one that users have: $KUBECTL, or that in the path.
func (w *world) kubectl() func(stdin string, args ...string) (string, error) {
	path := os.Getenv("KUBECTL")
	if path == "" {
		var err error
		if path, err = exec.LookPath("kubectl"); err != nil {
			w.Skip("no kubectl on this machine: the suite of the whole node has one, here it is a second look")
		}
	}
	config, home := w.kubeconfig(), w.TempDir()
	return func(stdin string, args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(w.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, path, args...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+config, "HOME="+home)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
}

const app = `apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers: [{name: c, image: "nginx:1.2", ports: [{containerPort: 80, name: http}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: cfg}
data: {a: "1"}
`

const isRunning = `{"status":{"phase":"Running","podIP":"10.0.0.9","conditions":[{"type":"Ready","status":"True"}],` +
	`"containerStatuses":[{"name":"c","image":"i","imageID":"","ready":true,"restartCount":0,"state":{"running":{}}}]}}`

func TestKubectl(t *testing.T) {
	w := start(t)
	kubectl := w.kubectl()
	ok := func(stdin, want string, args ...string) {
		t.Helper()
		out, err := kubectl(stdin, args...)
		if err != nil || !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
			t.Errorf("kubectl %s: %v, no %q in\n%s", strings.Join(args, " "), err, want, out)
		}
	}
	ok(app, "pod/web created service/web created configmap/cfg created", "apply", "-f", "-")
	ok(app, "pod/web unchanged service/web unchanged configmap/cfg unchanged", "apply", "-f", "-")
	ok("", "pod/web 0/1 Pending 0", "get", "all")
	w.must(200, "PATCH", pods+"/web/status", isRunning, "Content-Type", "application/strategic-merge-patch+json")
	ok("", "pod/web condition met", "wait", "--for=condition=Ready", "pod/web", "--timeout=20s")
	ok("", "NAME READY STATUS RESTARTS AGE IP NODE NOMINATED NODE READINESS GATES web 1/1 Running 0", "get", "pods", "-o", "wide")
	ok("", "10.0.0.9 node-1", "get", "pods", "-o", "wide")
	ok("", "Node: node-1", "describe", "pod", "web")
	ok("", "pod/web labeled", "label", "pod", "web", "x=y")
	ok("", "pod/web annotated", "annotate", "pod", "web", "n=m")
	if out, err := kubectl(strings.Replace(app, `a: "1"`, `a: "2"`, 1), "diff", "-f", "-"); err == nil || !strings.Contains(out, `+  a: "2"`) {
		t.Errorf("diff: %v\n%s", err, out)
	}
	ok(strings.Replace(app, `a: "1"`, `b: "2"`, 1), "configmap/cfg configured", "apply", "-f", "-")
	w.want(w.must(200, "GET", cms+"/cfg", ""), map[string]any{"b": "2"}, "data")
	editor := filepath.Join(t.TempDir(), "editor")
	if err := os.WriteFile(editor, []byte("#!/bin/sh\nsed -i s/nginx:1.2/nginx:1.3/ \"$1\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBE_EDITOR", editor)
	ok("", "pod/web edited", "edit", "pod", "web")
	ok("", "nginx:1.3", "get", "pod", "web", "-o", "jsonpath={.spec.containers[0].image}")
	bad, err := kubectl(strings.Replace(app, "image:", "imag:", 1), "apply", "-f", "-")
	if err == nil || !strings.Contains(bad, `strict decoding error: unknown field "spec.containers[0].imag"`) {
		t.Errorf("a misspelt field: %v\n%s", err, bad)
	}
	ok("", "FIELD: containers", "explain", "pod.spec.containers")
	ok("", "yes", "auth", "can-i", "create", "pods")
	ok(app, "configmap/cfg serverside-applied", "apply", "--server-side", "--force-conflicts", "-f", "-")
	ok("", `"web" deleted`, "delete", "pod", "web", "--wait=false")
	ok("", "web 1/1 Terminating 0", "get", "pods")
	ok("", `"web" force deleted`, "delete", "pod", "web", "--grace-period=0", "--force")
	if w.store.Get(store.Pods, "default", "web") != nil {
		t.Error("the pod is still there")
	}
}
