package node

import (
	"strings"
	"testing"

	"worknode/kube"
	"worknode/test/harness"
)

// Upstream's kubectl cannot tell the node's own API from a real one in daily work.
func TestKubectlFeelsAtHome(t *testing.T) {
	n := start(t, harness.Config{})
	kubectl := func(args ...string) string {
		t.Helper()
		out, errs, code := n.Kubectl(args...)
		if code != 0 {
			t.Errorf("kubectl %s: exit code %d: %s%s", strings.Join(args, " "), code, out, errs)
		}
		return out
	}
	has := func(text string, all ...string) {
		t.Helper()
		for _, want := range all {
			if !strings.Contains(text, want) {
				t.Errorf("%q is not in:\n%s", want, text)
			}
		}
	}
	file := n.Root + "/pod.yaml"
	write(t, file, good)
	has(kubectl("apply", "-f", file), "pod/good created")
	kubectl("wait", "--for=condition=Ready", "pod/good", "--timeout=30s")
	has(kubectl("apply", "-f", file), "pod/good unchanged")
	has(kubectl("get", "pods"), "NAME", "READY", "STATUS", "RESTARTS", "AGE", "good", "1/1", "Running")
	has(kubectl("get", "pods", "-o", "wide"), "NODE", "IP")
	has(kubectl("get", "nodes"), "Ready", "v1.37")
	has(kubectl("describe", "pod", "good"), "Status:", "Running", "Container ID:", "Events:", "Started")
	has(kubectl("get", "pod", "good", "-o", "jsonpath={.status.phase}"), "Running")
	kubectl("label", "pod", "good", "colour=green")
	has(kubectl("get", "pods", "-l", "colour=green", "-o", "name"), "pod/good")
	has(kubectl("logs", "good"), "waiting")
	has(kubectl("exec", "good", "--", "/bin/sh", "-c", "echo out; echo err >&2"), "out")
	if _, _, code := n.Kubectl("exec", "good", "--", "/bin/sh", "-c", "exit 42"); code != 42 {
		t.Errorf("kubectl exec ends with %d, want the command's own 42", code)
	}
	kubectl("debug", "good", "--image=worknode.test/app:1", "--container=look", "--target=main", "--", "/bin/sh", "-c", "echo I see $(cat /proc/1/cmdline); sleep 1000")
	kubectl("wait", "--for=jsonpath={.status.ephemeralContainerStatuses[0].state.running}", "pod/good", "--timeout=30s")
	has(kubectl("logs", "good", "-c", "look"), "I see /app")
	has(kubectl("get", "pods"), "1/1")
	if _, errs, code := n.Kubectl("debug", "good", "--image=x", "--container=look", "--target=main"); code == 0 {
		t.Errorf("a debug container was replaced: %s", errs)
	}
	kubectl("create", "configmap", "settings", "--from-literal=colour=green")
	kubectl("patch", "configmap", "settings", "--type=merge", "-p", `{"data":{"colour":"blue"}}`)
	has(kubectl("get", "configmap", "settings", "-o", "yaml"), "colour: blue")
	has(kubectl("get", "services"), "kubernetes")
	has(kubectl("get", "events"), "Started")
	if _, errs, code := n.Kubectl("apply", "-f", "-", "--dry-run=server"); code == 0 {
		t.Errorf("nothing was accepted as an object: %s", errs)
	}
	write(t, file, strings.Replace(good, "containers:", "contaners: []\n  containers:", 1))
	if out, errs, code := n.Kubectl("apply", "-f", file); code == 0 || !strings.Contains(errs, "contaners") {
		t.Errorf("an unknown field passed: code %d, %s%s", code, out, errs)
	}
	kubectl("delete", "pod", "good", "--wait=true", "--timeout=30s")
	if _, errs, code := n.Kubectl("get", "pod", "good"); code == 0 || !strings.Contains(errs, `pods "good" not found`) {
		t.Errorf("after the deletion: code %d, %s", code, errs)
	}
	n.Create(kube.Pods, pod("shell", "exec /app wait"))
	n.WaitReady("shell")
	out, errs, code := harness.Command(t, "script", "-qec", harness.Binary(t, "kubectl")+" --kubeconfig "+n.Place.Kubeconfig()+" exec -it shell -- /bin/sh -c 'tty; stty size'", "/dev/null")
	if code != 0 || !strings.Contains(out, "/dev/pts/") {
		t.Errorf("a terminal through kubectl: code %d, %s%s", code, out, errs)
	}
}
