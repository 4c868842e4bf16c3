package node

import (
	"os"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"worknode/test/harness"
)

const volumes = `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: green, shape: round}
---
apiVersion: v1
kind: Secret
metadata: {name: password}
stringData: {word: s3cret}
---
apiVersion: v1
kind: Pod
metadata: {name: all, labels: {app: all, tier: front}, annotations: {note: "two words"}}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {fsGroup: 4711}
  containers:
  - name: main
    image: worknode.test/app:1
    command: [/app, wait]
    resources: {limits: {memory: 64Mi}}
    volumeMounts:
    - {name: memory, mountPath: /memory}
    - {name: disk, mountPath: /disk}
    - {name: disk, mountPath: /sub, subPath: a/b}
    - {name: disk, mountPath: /subenv, subPathExpr: "of-$(NAME)"}
    - {name: disk, mountPath: /readonly, readOnly: true}
    - {name: mixed, mountPath: /mixed}
    - {name: about, mountPath: /about}
    - {name: secret, mountPath: /secret}
    - {name: settings, mountPath: /etc/colour, subPath: colour}
    - {name: some, mountPath: /some}
    - {name: absent, mountPath: /absent}
    env: [{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
  volumes:
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
  - {name: disk, emptyDir: {}}
  - {name: settings, configMap: {name: settings}}
  - {name: some, configMap: {name: settings, items: [{key: shape, path: deep/form, mode: 0440}]}}
  - {name: absent, configMap: {name: nowhere, optional: true}}
  - {name: secret, secret: {secretName: password, defaultMode: 0400}}
  - name: about
    downwardAPI:
      items:
      - {path: labels, fieldRef: {fieldPath: metadata.labels}}
      - {path: memory, resourceFieldRef: {containerName: main, resource: limits.memory, divisor: 1Mi}}
  - name: mixed
    projected:
      sources:
      - configMap: {name: settings, items: [{key: colour, path: colour}]}
      - secret: {name: password, items: [{key: word, path: deep/word}]}
      - downwardAPI: {items: [{path: note, fieldRef: {fieldPath: "metadata.annotations['note']"}}]}
`

func TestVolumesOfEveryKind(t *testing.T) {
	n := start(t, harness.Config{Manifests: map[string]string{"volumes.yaml": volumes}})
	n.WaitReady("all")
	for _, c := range []struct{ what, script, want string }{
		{"emptyDir in memory is a tmpfs of its size", "df -P /memory | awk 'NR==2 {print $1, $2}'", "tmpfs 8192"},
		{"fsGroup owns an emptyDir", "stat -c %g:%A /disk", "4711:drwxrwsrwx"},
		{"fsGroup owns a tmpfs", "stat -c %g /memory", "4711"},
		{"fsGroup is among the groups", "id -G", "0 4711"},
		{"subPath is made, and a part of the volume", "echo x > /sub/file; cat /disk/a/b/file", "x"},
		{"subPathExpr", "echo y > /subenv/file; cat /disk/of-all/file", "y"},
		{"read-only mount", "echo z > /readonly/file || echo refused", "refused"},
		{"read-only mount shows the rest", "cat /readonly/a/b/file", "x"},
		{"projected", "cat /mixed/colour /mixed/deep/word; echo; cat /mixed/note", "greens3cret\ntwo words"},
		{"labels", "cat /about/labels", "app=\"all\"\ntier=\"front\""},
		{"resource", "cat /about/memory", "64"},
		{"secret's mode, and its group may read", "stat -L -c %a:%g /secret/word", "440:4711"},
		{"secret's content", "cat /secret/word", "s3cret"},
		{"secrets never touch a disk", "awk '$2==\"/secret\" {print $3}' /proc/mounts", "tmpfs"},
		{"one key as a file", "cat /etc/colour", "green"},
		{"chosen keys only", "cd /some; find . -follow -type f | grep -v '\\.\\.'; stat -L -c %a deep/form", "./deep/form\n440"},
		{"optional and missing", "ls /absent | wc -l", "0"},
		{"ConfigMap is read-only", "echo x > /some/new || echo refused", "refused"},
	} {
		t.Run(c.what, func(t *testing.T) {
			got, _ := try(t, n, "all", c.script+" 2>/dev/null")
			if got = strings.TrimSpace(strings.ReplaceAll(got, "/bin/sh: can't create /readonly/file: Read-only file system\n", "")); !strings.HasSuffix(got, c.want) || (c.want != "refused" && got != c.want) {
				t.Errorf("%s: got %q, want %q", c.script, got, c.want)
			}
		})
	}
	// Labels, and whatever an optional volume was missing, reach the files of the running pod.
	kubectl(t, n, "label", "pod", "all", "tier=back", "--overwrite")
	kubectl(t, n, "create", "configmap", "nowhere", "--from-literal=now=here")
	n.Until("the label to reach the file", 5*time.Second, func() bool {
		out, _ := try(t, n, "all", "cat /about/labels")
		return strings.Contains(out, `tier="back"`)
	})
	n.Until("the ConfigMap to reach the files", 5*time.Second, func() bool {
		out, _ := try(t, n, "all", "cat /absent/now")
		return out == "here"
	})
}

func TestHostPathTypes(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/file", "there")
	n := start(t, harness.Config{Manifests: map[string]string{"a.yaml": strings.ReplaceAll(`
apiVersion: v1
kind: Pod
metadata: {name: host}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: worknode.test/app:1
    command: [/app, wait]
    volumeMounts:
    - {name: dir, mountPath: /h/dir}
    - {name: file, mountPath: /h/file}
    - {name: madedir, mountPath: /h/madedir}
    - {name: madefile, mountPath: /h/madefile}
  volumes:
  - {name: dir, hostPath: {path: DIR, type: Directory}}
  - {name: file, hostPath: {path: DIR/file, type: File}}
  - {name: madedir, hostPath: {path: DIR/new/dir, type: DirectoryOrCreate}}
  - {name: madefile, hostPath: {path: DIR/newfile, type: FileOrCreate}}
---
apiVersion: v1
kind: Pod
metadata: {name: wrong}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: "worknode.test/app:1", command: [/app, wait], volumeMounts: [{name: v, mountPath: /v}]}
  volumes:
  - {name: v, hostPath: {path: DIR/file, type: Directory}}
---
apiVersion: v1
kind: Pod
metadata: {name: missing}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: "worknode.test/app:1", command: [/app, wait], volumeMounts: [{name: v, mountPath: /v}]}
  volumes:
  - {name: v, hostPath: {path: DIR/late, type: Directory}}
`, "DIR", dir)}})
	n.WaitReady("host")
	if got := sh(t, n, "host", "cat /h/file; echo from the pod > /h/madedir/x; echo more >> /h/madefile"); got != "there" {
		t.Errorf("the file: %q", got)
	}
	if data, err := os.ReadFile(dir + "/new/dir/x"); string(data) != "from the pod\n" {
		t.Errorf("what the pod wrote: %q, %v", data, err)
	}
	if data, err := os.ReadFile(dir + "/newfile"); string(data) != "more\n" {
		t.Errorf("what the pod wrote: %q, %v", data, err)
	}
	event(t, n, "FailedMount", "wrong", dir+"/file")
	event(t, n, "FailedMount", "missing", dir+"/late")
	if err := os.Mkdir(dir+"/late", 0o755); err != nil {
		t.Fatal(err)
	}
	n.WaitReady("missing")
}

// A pod that names what is not there waits, says why, and starts when it appears.
func TestPodWaitsForItsConfiguration(t *testing.T) {
	n := start(t, harness.Config{Manifests: map[string]string{"a.yaml": `
apiVersion: v1
kind: Pod
metadata: {name: volume}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: "worknode.test/app:1", command: [/app, wait], volumeMounts: [{name: v, mountPath: /v}]}
  volumes: [{name: v, configMap: {name: late}}]
---
apiVersion: v1
kind: Pod
metadata: {name: env}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: worknode.test/app:1
    command: [/bin/sh, -c, "echo got $X; exec /app wait"]
    env: [{name: X, valueFrom: {configMapKeyRef: {name: late, key: x}}}]
`}})
	event(t, n, "FailedMount", "volume", "late")
	p := n.WaitPod("env", "waiting for its ConfigMap", 10*time.Second, func(p *v1.Pod) bool {
		c := container(p, "main")
		return c != nil && c.State.Waiting != nil && c.State.Waiting.Reason == "CreateContainerConfigError"
	})
	has(t, container(p, "main").State.Waiting.Message, "late")
	kubectl(t, n, "create", "configmap", "late", "--from-literal=x=y")
	n.WaitReady("volume")
	n.WaitReady("env")
	logged(t, n, "env", "got y")
}
