package node

import (
	"archive/tar"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"worknode/kube"
	"worknode/test/harness"
)

const good = `
apiVersion: v1
kind: Pod
metadata: {name: good}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: "` + image + `", command: [/app, wait]}]
`

// A bad document is told with file, document, line and field; its neighbours in the same file and folder live.
func TestBadManifestsHarmNobody(t *testing.T) {
	n := start(t, harness.Config{Manifests: map[string]string{
		"mixed.yaml": good + `---
apiVersion: v1
kind: Pod
metadata: {name: typo}
spec:
  contaners: []
---
apiVersion: v1
kind: Pod
metadata: {name: wrongtype}
spec:
  containers: [{name: main, image: x, ports: [{containerPort: eighty}]}]
`,
		"broken.yaml":  "apiVersion: v1\nkind: [\n",
		"unknown.yaml": "apiVersion: v1\nkind: Pot\nmetadata: {name: p}\n",
		"invalid.yaml": "apiVersion: v1\nkind: Pod\nmetadata: {name: UPPER}\nspec: {containers: [{name: main, image: x}]}\n",
	}})
	n.WaitReady("good")
	for _, want := range [][]string{
		{"mixed.yaml", "document 2", "contaners"},
		{"mixed.yaml", "document 3", "containerPort"},
		{"broken.yaml", "line"},
		{"unknown.yaml", "Pot"},
		{"invalid.yaml", "metadata.name", "UPPER"},
	} {
		n.Until(fmt.Sprint("a line that names ", want), 5*time.Second, func() bool { return hasLine(n.Output(), want) })
	}
	// Mending the file brings the object; removing it takes it away.
	n.Write("invalid.yaml", strings.Replace(good, "good", "mended", 1))
	n.WaitReady("mended")
	if err := os.Remove(n.Dir + "/invalid.yaml"); err != nil {
		t.Fatal(err)
	}
	n.WaitPod("mended", "gone", 10*time.Second, harness.Gone)
	// What a manifest declares comes back when somebody deletes it.
	uid := n.WaitReady("good").UID
	n.Delete(kube.Pods, "good")
	n.WaitPod("good", "made anew", 15*time.Second, func(p *v1.Pod) bool { return harness.Ready(p) && p.UID != uid })
}

func hasLine(text string, all []string) bool {
lines:
	for line := range strings.Lines(text) {
		for _, part := range all {
			if !strings.Contains(line, part) {
				continue lines
			}
		}
		return true
	}
	return false
}

func TestBadImagesHarmNobody(t *testing.T) {
	n := start(t, harness.Config{Manifests: map[string]string{"good.yaml": good}})
	n.WaitReady("good")
	whole, err := os.ReadFile(filepath.Join(n.Dir, "images/app.tar"))
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(whole)
	flipped[len(flipped)/2] ^= 0xff
	for name, data := range map[string][]byte{
		"truncated.tar": whole[:len(whole)/2],
		"flipped.tar":   flipped,
		"notatar.tar":   []byte("this is not a tar"),
		"escape.tar":    escaping(t),
	} {
		if err := os.WriteFile(filepath.Join(n.Dir, "images", name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	runtimeLog := func() string {
		data, _ := os.ReadFile(filepath.Join(n.Place.Logs(), "runtime.log"))
		return string(data)
	}
	for _, name := range []string{"truncated.tar", "flipped.tar", "notatar.tar", "escape.tar"} {
		n.Until("an error that names "+name, 20*time.Second, func() bool { return strings.Contains(runtimeLog(), name) })
	}
	if _, err := os.Stat("/tmp/worknode-escaped"); err == nil {
		t.Error("an image wrote outside its folder")
	}
	out, _ := n.Worknode("images")
	if lines := strings.Count(out, "\n"); lines != 2 {
		t.Errorf("want the header and one image:\n%s", out)
	}
	n.Create(kube.Pods, pod("missing", "true", func(p *v1.Pod) { p.Spec.Containers[0].Image = "worknode.test/absent:1" }))
	p := n.WaitPod("missing", "waiting for its image", 15*time.Second, func(p *v1.Pod) bool {
		if p == nil || len(p.Status.ContainerStatuses) == 0 {
			return false
		}
		w := p.Status.ContainerStatuses[0].State.Waiting
		return w != nil && (w.Reason == "ErrImagePull" || w.Reason == "ImagePullBackOff")
	})
	if m := p.Status.ContainerStatuses[0].State.Waiting.Message; !strings.Contains(m, "worknode.test/absent:1") {
		t.Errorf("the message does not name the image: %q", m)
	}
	if p := n.WaitReady("good"); p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Error("the good pod was restarted")
	}
}

// escaping is an image whose layer names a file outside.
func escaping(t *testing.T) []byte {
	var layer, image bytes.Buffer
	add := func(w *tar.Writer, h *tar.Header, data string) {
		h.Size, h.Mode = int64(len(data)), 0o644
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	l := tar.NewWriter(&layer)
	add(l, &tar.Header{Name: "../../../../../../../../../../../tmp/worknode-escaped", Typeflag: tar.TypeReg}, "out")
	l.Close()
	i := tar.NewWriter(&image)
	add(i, &tar.Header{Name: "layer.tar", Typeflag: tar.TypeReg}, layer.String())
	add(i, &tar.Header{Name: "config.json", Typeflag: tar.TypeReg}, `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:0000000000000000000000000000000000000000000000000000000000000000"]}}`)
	add(i, &tar.Header{Name: "manifest.json", Typeflag: tar.TypeReg}, `[{"Config":"config.json","RepoTags":["escape:1"],"Layers":["layer.tar"]}]`)
	i.Close()
	return image.Bytes()
}

// Whatever keeps a node from starting is one line that names the object and the remedy, and a failing exit code.
func TestStartErrorsAreOneClearLine(t *testing.T) {
	dir := t.TempDir()
	busy, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	port := fmt.Sprint(busy.Addr().(*net.TCPAddr).Port)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	full := fullDisk(t)
	for _, c := range []struct {
		name string
		args []string
		want []string
	}{
		{"no folder", []string{"--root", dir + "/a", dir + "/nothing"}, []string{"nothing"}},
		{"folder is a file", []string{"--root", dir + "/b", file}, []string{file}},
		{"port in use", []string{"--root", dir + "/c", "--api-port", port, dir}, []string{port, "--api-port"}},
		{"published port in use", []string{"--root", dir + "/d", "--api-port", fmt.Sprint(harness.FreePort(t)), "--publish", port + ":30080", dir}, []string{port, "--publish"}},
		{"bad publish", []string{"--root", dir + "/e", "--publish", "eighty", dir}, []string{"eighty", "8080:30080"}},
		{"socket path too long", []string{"--root", dir + "/" + strings.Repeat("long", 30), dir}, []string{"107", "--root"}},
		{"state folder cannot be made", []string{"--root", file + "/x", dir}, []string{file, "--root"}},
		{"full state folder", []string{"--root", full, dir}, []string{full, "space"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, errs, code := harness.Command(t, harness.Binary(t, "worknode"), append([]string{"run", "--isolated"}, c.args...)...)
			if code == 0 || strings.Count(strings.TrimSpace(errs), "\n") > 0 {
				t.Errorf("exit code %d, said:\n%s", code, errs)
			}
			for _, want := range c.want {
				if !strings.Contains(errs, want) {
					t.Errorf("%q is not in: %s", want, errs)
				}
			}
		})
	}
	t.Run("no root", func(t *testing.T) {
		out, err := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", harness.Binary(t, "worknode"), "run", "--isolated", "--root", dir+"/f", dir).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "root") || strings.Count(strings.TrimSpace(string(out)), "\n") > 0 {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// fullDisk is a tmpfs without a free byte.
func fullDisk(t *testing.T) string {
	dir := t.TempDir()
	if _, errs, code := harness.Command(t, "mount", "-t", "tmpfs", "-o", "size=64k", "full", dir); code != 0 {
		t.Fatal(errs)
	}
	t.Cleanup(func() { harness.Command(t, "umount", dir) })
	if err := os.MkdirAll(dir+"/lib", 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(dir + "/filler")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for {
		if _, err := f.Write(make([]byte, 512)); err != nil {
			return dir
		}
	}
}
