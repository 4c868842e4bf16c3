package volume

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"worknode/fault"
	"worknode/kernel/mount"
	"worknode/kubelet/translate"
)

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Println("these tests mount file systems: run them as root")
		os.Exit(1)
	}
	syscall.Umask(0o077) // an unfriendly one: modes must not depend on it
	os.Exit(m.Run())
}

type objects struct {
	configs map[string]*v1.ConfigMap
	secrets map[string]*v1.Secret
	token   string
}

func (o *objects) ConfigMap(_ context.Context, ns, name string) (*v1.ConfigMap, error) {
	if cm := o.configs[name]; cm != nil {
		return cm, nil
	}
	return nil, fault.New(fault.NotFound, "configmap %q not found", name)
}

func (o *objects) Secret(_ context.Context, ns, name string) (*v1.Secret, error) {
	if s := o.secrets[name]; s != nil {
		return s, nil
	}
	return nil, fault.New(fault.NotFound, "secret %q not found", name)
}

func (o *objects) Token(context.Context, *v1.Pod, *v1.ServiceAccountTokenProjection) (string, error) {
	if o.token == "" {
		return "", fault.New(fault.Unsupported, "no tokens here")
	}
	return o.token, nil
}

// fixture is a kubelet root on disk (not tmpfs, so that the shared tmpfs is really mounted) and the objects of its API.
func fixture(t *testing.T) (*Volumes, *objects) {
	t.Helper()
	root, err := os.MkdirTemp("/var/tmp", "wn-volume-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, err := mount.Below(root)
		if err != nil || len(left) > 0 {
			t.Errorf("mounts left behind: %v %v", left, err)
		}
		for _, m := range left {
			mount.Detach(m)
		}
		os.RemoveAll(root)
	})
	o := &objects{configs: map[string]*v1.ConfigMap{}, secrets: map[string]*v1.Secret{}}
	node := translate.Node{Allocatable: v1.ResourceList{"memory": resource.MustParse("1Gi"), "cpu": resource.MustParse("2")}}
	v := New(Config{Root: root, Objects: o, Node: func() translate.Node { return node }, Now: time.Now})
	t.Cleanup(func() {
		for _, uid := range v.List() {
			if err := v.Unmount(context.Background(), uid); err != nil {
				t.Error(err)
			}
		}
	})
	return v, o
}

func podOf(t *testing.T, text string) *v1.Pod {
	t.Helper()
	var pod v1.Pod
	if err := yaml.UnmarshalStrict([]byte(text), &pod); err != nil {
		t.Fatalf("pod in the test: %v", err)
	}
	pod.Name, pod.Namespace, pod.UID = "web", "shop", "u1"
	return &pod
}

// using is a pod with one volume v, mounted by one container.
func using(t *testing.T, volume string) *v1.Pod {
	t.Helper()
	return podOf(t, "metadata: {labels: {app: cart}}\nspec:\n  volumes:\n  - name: v\n    "+volume+
		"\n  containers:\n  - {name: c, volumeMounts: [{name: v, mountPath: /v}], resources: {limits: {memory: 64Mi}}}\n")
}

func mounted(t *testing.T, v *Volumes, pod *v1.Pod) string {
	t.Helper()
	if err := v.Mount(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	return v.Paths(pod)["v"]
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func modeOf(t *testing.T, path string) (mode os.FileMode, uid, gid int) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	o := owner(info)
	return info.Mode(), int(o.Uid), int(o.Gid)
}

func isTmpfs(t *testing.T, path string) bool {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		t.Fatal(err)
	}
	return fs.Type == unix.TMPFS_MAGIC
}

func TestConfigMapIsAFileAndFollowsChanges(t *testing.T) {
	v, o := fixture(t)
	o.configs["x"] = &v1.ConfigMap{Data: map[string]string{"a": "1", "b": "2"}, BinaryData: map[string][]byte{"bin": {0, 1}}}
	pod := using(t, "configMap: {name: x}")
	dir := mounted(t, v, pod)
	if read(t, dir+"/a") != "1" || read(t, dir+"/bin") != "\x00\x01" {
		t.Error("content")
	}
	if m, _, _ := modeOf(t, dir+"/a"); m != 0o644 {
		t.Errorf("mode %v", m)
	}
	before, _ := os.Readlink(dir + "/..data")
	if err := v.Refresh(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Readlink(dir + "/..data"); after != before {
		t.Error("nothing changed, yet the files were written again")
	}
	o.configs["x"] = &v1.ConfigMap{Data: map[string]string{"a": "new", "c": "3"}}
	if err := v.Refresh(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if read(t, dir+"/a") != "new" || read(t, dir+"/c") != "3" {
		t.Error("the change did not arrive")
	}
	if _, err := os.Lstat(dir + "/b"); !os.IsNotExist(err) {
		t.Errorf("a key that went is still there: %v", err)
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 4 { // ..data, its directory, a, c
		t.Errorf("old directories stay: %v", entries)
	}
}

// A reader that follows ..data must always find one whole version.
func TestChangeIsAtomic(t *testing.T) {
	v, o := fixture(t)
	version := func(n int) *v1.ConfigMap {
		return &v1.ConfigMap{Data: map[string]string{"a": fmt.Sprint(n), "b": fmt.Sprint(n)}}
	}
	o.configs["x"] = version(0)
	pod := using(t, "configMap: {name: x}")
	dir := mounted(t, v, pod)
	stop, torn := make(chan struct{}), make(chan string, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			at, err := os.Open(dir + "/..data") // as a program would that wants one version
			if err != nil {
				continue
			}
			a, errA := readAt(at, "a")
			b, errB := readAt(at, "b")
			at.Close()
			if errA == nil && errB == nil && a != b {
				select {
				case torn <- a + " " + b:
				default:
				}
			}
		}
	}()
	for n := 1; n <= 200; n++ {
		o.configs["x"] = version(n)
		if err := v.Refresh(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	<-done
	select {
	case s := <-torn:
		t.Errorf("a reader saw a mix: %s", s)
	default:
	}
	if read(t, dir+"/a") != "200" {
		t.Error("the last change is not there")
	}
}

func readAt(dir *os.File, name string) (string, error) {
	b, err := os.ReadFile(mount.FdPath(int(dir.Fd())) + "/" + name)
	return string(b), err
}

func TestSecretRestsInMemoryAlone(t *testing.T) {
	v, o := fixture(t)
	o.secrets["s"] = &v1.Secret{Data: map[string][]byte{"pw": []byte("x"), "other": []byte("y")}}
	pod := using(t, "secret: {secretName: s, defaultMode: 0400, items: [{key: pw, path: deep/er/pass, mode: 0440}]}")
	dir := mounted(t, v, pod)
	if !isTmpfs(t, dir) {
		t.Error("a secret lies on a disk")
	}
	if m, _, _ := modeOf(t, dir+"/deep/er/pass"); m != 0o440 {
		t.Errorf("mode %v", m)
	}
	if _, err := os.Stat(dir + "/other"); !os.IsNotExist(err) {
		t.Error("a key that no item names is there")
	}
	if m, _, _ := modeOf(t, filepath.Dir(filepath.Dir(dir))); m.Perm() != 0o700 {
		t.Errorf("users of the host can look into the secrets: %v", m)
	}
	if err := v.Unmount(t.Context(), pod.UID); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(v.shared.dir); !os.IsNotExist(err) {
		t.Error("the tmpfs outlives the last pod")
	}
}

func TestFSGroupOwnsTheVolumes(t *testing.T) {
	v, o := fixture(t)
	o.secrets["s"] = &v1.Secret{Data: map[string][]byte{"k": []byte("x")}}
	pod := using(t, "secret: {secretName: s, defaultMode: 0400}")
	group := int64(5000)
	pod.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: &group}
	pod.Spec.Volumes = append(pod.Spec.Volumes, v1.Volume{Name: "e", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
		v1.Volume{Name: "m", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory}}})
	c := &pod.Spec.Containers[0]
	c.VolumeMounts = append(c.VolumeMounts, v1.VolumeMount{Name: "e"}, v1.VolumeMount{Name: "m"})
	dir := mounted(t, v, pod)
	if m, uid, gid := modeOf(t, dir+"/k"); m != 0o440 || uid != 0 || gid != 5000 {
		t.Errorf("secret %v %d:%d", m, uid, gid)
	}
	for _, name := range []string{"e", "m"} {
		if m, _, gid := modeOf(t, v.Paths(pod)[name]); m.Perm() != 0o777 || m&os.ModeSetgid == 0 || gid != 5000 {
			t.Errorf("emptyDir %s: %v group %d", name, m, gid)
		}
	}
}

func TestOptionalAndMissing(t *testing.T) {
	v, o := fixture(t)
	o.configs["have"] = &v1.ConfigMap{Data: map[string]string{"k": "1"}}
	for volume, want := range map[string]string{
		"configMap: {name: none}":                                                 `MountVolume.SetUp failed for volume "v" : configmap "none" not found`,
		"secret: {secretName: none}":                                              `MountVolume.SetUp failed for volume "v" : secret "none" not found`,
		"configMap: {name: have, items: [{key: z, path: z}]}":                     `MountVolume.SetUp failed for volume "v" : references non-existent config key: z`,
		"projected: {sources: [{secret: {name: none}}]}":                          `MountVolume.SetUp failed for volume "v" : secret "none" not found`,
		"configMap: {name: none, optional: true}":                                 "",
		"secret: {secretName: none, optional: true}":                              "",
		"configMap: {name: have, optional: true, items: [{key: z, path: z}]}":     "",
		"projected: {sources: [{configMap: {name: none, optional: true}}]}":       "",
		"configMap: {name: have, items: [{key: k, path: ../../etc/passwd}]}":      `invalid path "../../etc/passwd"`,
		"csi: {driver: d.example}":                                                `volume kind csi (driver d.example) is not supported yet`,
		"projected: {sources: [{serviceAccountToken: {path: t}}]}":                `no tokens here`,
		"downwardAPI: {items: [{path: x, fieldRef: {fieldPath: status.hostIP}}]}": `unsupported fieldPath: status.hostIP`,
		"hostPath: {path: /nonexistent-wn, type: Directory}":                      `hostPath type check failed: /nonexistent-wn is not a directory`,
	} {
		pod := using(t, volume)
		err := v.Mount(t.Context(), pod)
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", volume, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: got %v, want %s", volume, err, want)
		}
		if want == "" {
			if entries, err := os.ReadDir(v.Paths(pod)["v"]); err != nil || len(entries) != 2 {
				t.Errorf("%s: an absent optional object is an empty volume: %v %v", volume, entries, err)
			}
		}
		if err := v.Unmount(t.Context(), pod.UID); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUnusedVolumesAreNotMounted(t *testing.T) {
	v, _ := fixture(t)
	pod := using(t, "configMap: {name: nowhere}")
	pod.Spec.Containers[0].VolumeMounts = nil
	if err := v.Mount(t.Context(), pod); err != nil {
		t.Errorf("no container mounts it: %v", err)
	}
}

func TestProjectedAndDownward(t *testing.T) {
	v, o := fixture(t)
	o.configs["x"] = &v1.ConfigMap{Data: map[string]string{"a": "1"}}
	o.secrets["s"] = &v1.Secret{Data: map[string][]byte{"b": []byte("2")}}
	o.token = "tok"
	pod := using(t, `projected:
      defaultMode: 0640
      sources:
      - configMap: {name: x}
      - secret: {name: s, items: [{key: b, path: sub/b}]}
      - serviceAccountToken: {path: token}
      - downwardAPI:
          items:
          - {path: labels, fieldRef: {fieldPath: metadata.labels}}
          - {path: mem, resourceFieldRef: {containerName: c, resource: limits.memory, divisor: 1Mi}}
          - {path: cpu, resourceFieldRef: {containerName: c, resource: limits.cpu}, mode: 0400}`)
	user := int64(1234)
	pod.Spec.SecurityContext = &v1.PodSecurityContext{RunAsUser: &user}
	dir := mounted(t, v, pod)
	for file, want := range map[string]string{"a": "1", "sub/b": "2", "token": "tok", "labels": `app="cart"`, "mem": "64", "cpu": "2"} {
		if got := read(t, dir+"/"+file); got != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
	if m, uid, _ := modeOf(t, dir+"/token"); m != 0o600 || uid != 1234 {
		t.Errorf("token %v of user %d: it is for the container's user alone", m, uid)
	}
	if m, _, _ := modeOf(t, dir+"/a"); m != 0o640 {
		t.Errorf("mode %v", m)
	}
	pod.Labels["app"] = "till"
	if err := v.Refresh(t.Context(), pod); err != nil || read(t, dir+"/labels") != `app="till"` {
		t.Errorf("a changed label did not arrive: %v", err)
	}
}

func TestEmptyDirIsTheContainers(t *testing.T) {
	v, _ := fixture(t)
	pod := using(t, "emptyDir: {}")
	dir := mounted(t, v, pod)
	if m, _, _ := modeOf(t, dir); m.Perm() != 0o777 {
		t.Errorf("mode %v", m)
	}
	if err := os.WriteFile(dir+"/f", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	again := New(v.cfg) // a restarted kubelet
	if err := again.Mount(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if m, _, _ := modeOf(t, dir); m.Perm() != 0o700 {
		t.Errorf("mode %v: what the container changed was undone", m)
	}
	if _, err := os.Stat(dir + "/f"); err != nil {
		t.Error(err)
	}
	if got := again.List(); len(got) != 1 || got[0] != "u1" {
		t.Errorf("List %v", got)
	}
	if err := again.Unmount(t.Context(), "u1"); err != nil {
		t.Fatal(err)
	}
	if got := again.List(); len(got) != 0 {
		t.Errorf("List after Unmount %v", got)
	}
}

func TestMemoryEmptyDirIsBounded(t *testing.T) {
	v, _ := fixture(t)
	pod := using(t, "emptyDir: {medium: Memory, sizeLimit: 1Mi}")
	dir := mounted(t, v, pod)
	if !isTmpfs(t, dir) {
		t.Fatal("not in memory")
	}
	if err := os.WriteFile(dir+"/big", make([]byte, 2<<20), 0o600); err == nil {
		t.Error("two megabytes went into one")
	}
	if err := os.WriteFile(dir+"/small", []byte("x"), 0o600); err != nil && !os.IsExist(err) {
		t.Log(err) // the file above may have filled it
	}
	if m, _, _ := modeOf(t, dir); m.Perm() != 0o777 {
		t.Errorf("mode %v", m)
	}
	mounted(t, New(v.cfg), pod)
	if points, _ := mount.Below(dir); len(points) != 1 {
		t.Errorf("mounted again over itself: %v", points)
	}
	pod.Spec.Volumes[0].EmptyDir.SizeLimit = nil
	if size := v.memorySize(pod, &pod.Spec.Volumes[0]); size != 64<<20 {
		t.Errorf("without sizeLimit the pod's memory limit bounds it, got %d", size)
	}
}

func TestHostPathTypes(t *testing.T) {
	v, _ := fixture(t)
	base := t.TempDir()
	if err := os.WriteFile(base+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path, kind string
		ok         bool
	}{
		{base, "Directory", true}, {base + "/file", "Directory", false}, {base + "/file", "File", true}, {base, "File", false},
		{base + "/new/dir", "DirectoryOrCreate", true}, {base + "/newfile", "FileOrCreate", true}, {base, "FileOrCreate", false},
		{base + "/no/parent", "FileOrCreate", false}, {"/dev/null", "CharDevice", true}, {base, "CharDevice", false},
		{base, "Socket", false}, {"/dev/null", "BlockDevice", false}, {base + "/none", "", true}, {"relative", "", false}, {base, "Odd", false},
	} {
		pod := using(t, fmt.Sprintf("hostPath: {path: %q, type: %q}", c.path, c.kind))
		err := v.Mount(t.Context(), pod)
		if (err == nil) != c.ok {
			t.Errorf("%s as %q: %v", c.path, c.kind, err)
		}
		if v.Paths(pod)["v"] != c.path {
			t.Errorf("path %v", v.Paths(pod))
		}
	}
	if info, err := os.Stat(base + "/new/dir"); err != nil || !info.IsDir() {
		t.Error(err)
	}
}

func TestUnmountTouchesNoHostPath(t *testing.T) {
	v, _ := fixture(t)
	base := t.TempDir()
	if err := os.MkdirAll(base+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(base+"/sub/keep", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	pod := using(t, "hostPath: {path: "+base+"}")
	mounted(t, v, pod)
	if _, err := v.SubPath(pod, &pod.Spec.Containers[0], 0, "sub"); err != nil {
		t.Fatal(err)
	}
	if err := New(v.cfg).Unmount(t.Context(), pod.UID); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(base + "/sub/keep"); err != nil {
		t.Fatalf("unmounting deleted the user's data: %v", err)
	}
}

func TestUnmountThroughASymlinkedRoot(t *testing.T) {
	v, _ := fixture(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(v.cfg.Root, link); err != nil {
		t.Fatal(err)
	}
	cfg := v.cfg
	cfg.Root = link
	v2 := New(cfg)
	pod := using(t, "emptyDir: {medium: Memory}")
	mounted(t, v2, pod)
	if err := v2.Unmount(t.Context(), pod.UID); err != nil {
		t.Fatal(err)
	}
	if left, _ := mount.Below(v.cfg.Root); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestSubPathStaysInside(t *testing.T) {
	v, o := fixture(t)
	pod := using(t, "emptyDir: {}")
	dir := mounted(t, v, pod)
	c := &pod.Spec.Containers[0]
	for name, target := range map[string]string{"abs": "/etc", "up": "../../..", "file": "/etc/passwd"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, sub := range []string{"abs", "file", "abs/passwd", "../../../../../../etc", "abs/new"} {
		got, err := v.SubPath(pod, c, 0, sub)
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("subPath %s leads out of the volume to %s: %v", sub, got, err)
		}
	}
	up, err := v.SubPath(pod, c, 0, "up") // goes no higher than the volume itself
	if err != nil {
		t.Fatal(err)
	}
	if target, err := os.Readlink(up + "/abs"); err != nil || target != "/etc" {
		t.Errorf("up leads to another place than the volume: %v", err)
	}
	if _, err := os.Stat("/etc/new"); err == nil {
		t.Fatal("a directory was made on the host")
	}
	got, err := v.SubPath(pod, c, 0, "a/b")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(got+"/f", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if read(t, dir+"/a/b/f") != "x" {
		t.Error("the subPath is not the volume's directory")
	}
	if m, _, _ := modeOf(t, dir+"/a"); m.Perm() != 0o777 {
		t.Errorf("mode %v: the container's user cannot write what it may write in the volume", m)
	}
	// What is mounted stays what it was, whatever the container puts in its place.
	if err := os.Rename(dir+"/a", dir+"/z"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", dir+"/a"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(got + "/passwd"); err == nil {
		t.Error("the mount followed a symlink that came later")
	}
	o.configs["x"] = &v1.ConfigMap{Data: map[string]string{"k": "1"}}
	conf := using(t, "configMap: {name: x}")
	conf.UID = "u2"
	mounted(t, v, conf)
	file, err := v.SubPath(conf, &conf.Spec.Containers[0], 0, "k")
	if err != nil || read(t, file) != "1" {
		t.Fatalf("a file of a configMap: %v", err)
	}
	o.configs["x"] = &v1.ConfigMap{Data: map[string]string{"k": "2"}}
	if err := v.Refresh(t.Context(), conf); err != nil {
		t.Fatal(err)
	}
	if read(t, file) != "1" {
		t.Error("a subPath mount is a copy of its moment")
	}
	if file, err = v.SubPath(conf, &conf.Spec.Containers[0], 0, "k"); err != nil || read(t, file) != "2" {
		t.Errorf("a restarted container sees the new one: %v", err)
	}
}

func TestPrepareFiles(t *testing.T) {
	v, _ := fixture(t)
	pod := using(t, "emptyDir: {}")
	c := &pod.Spec.Containers[0]
	c.TerminationMessagePath = "/dev/termination-log"
	var last Files
	for n := range 4 {
		f, err := v.PrepareFiles(pod, c, n, []string{"10.0.0.7"})
		if err != nil {
			t.Fatal(err)
		}
		last = f
	}
	if m, _, _ := modeOf(t, last.Termination); m.Perm() != 0o666 {
		t.Errorf("mode %v", m)
	}
	if !strings.Contains(read(t, last.Hosts), "10.0.0.7\tweb\n") {
		t.Errorf("hosts file:\n%s", read(t, last.Hosts))
	}
	entries, _ := os.ReadDir(filepath.Dir(last.Termination))
	if len(entries) != 2 {
		t.Errorf("a crash loop fills the disk: %v", entries)
	}
	if err := os.WriteFile(last.Termination, []byte(strings.Repeat("x", 5000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := v.TerminationMessage(pod.UID, "c", 3); len(got) != 4096 {
		t.Errorf("%d bytes of the last words", len(got))
	}
	if v.TerminationMessage("none", "c", 0) != "" {
		t.Error("words of a pod that is not there")
	}
	before, _ := os.Stat(last.Hosts)
	if _, err := v.PrepareFiles(pod, c, 4, []string{"10.0.0.8"}); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(last.Hosts); !os.SameFile(before, after) {
		t.Error("a new file does not reach the containers that have the old one mounted")
	}
}

func TestNamesCannotLeaveTheRoot(t *testing.T) {
	v, _ := fixture(t)
	pod := using(t, "emptyDir: {}")
	for _, uid := range []types.UID{"", "..", "../x", "a/b", "."} {
		pod.UID = uid
		if err := v.Mount(t.Context(), pod); !fault.Is(err, fault.Invalid) {
			t.Errorf("uid %q: %v", uid, err)
		}
		if err := v.Unmount(t.Context(), uid); !fault.Is(err, fault.Invalid) {
			t.Errorf("uid %q: %v", uid, err)
		}
	}
}

func TestUnmountAndRefreshRace(t *testing.T) {
	v, o := fixture(t)
	o.configs["x"] = &v1.ConfigMap{Data: map[string]string{"a": "1"}}
	pod := using(t, "configMap: {name: x}")
	for range 50 {
		mounted(t, v, pod)
		done := make(chan error)
		go func() { done <- v.Refresh(context.Background(), pod) }()
		if err := v.Unmount(t.Context(), pod.UID); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if got := v.List(); len(got) != 0 {
			t.Fatalf("a refresh brought the pod back: %v", got)
		}
	}
}

func BenchmarkMountSecretAndConfigMap(b *testing.B) {
	root := b.TempDir()
	o := &objects{configs: map[string]*v1.ConfigMap{"x": {Data: map[string]string{"a": "1"}}}}
	v := New(Config{Root: root, Objects: o, Node: func() translate.Node { return translate.Node{} }, Now: time.Now})
	pod := &v1.Pod{}
	pod.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{}}}}
	pod.Spec.Volumes[0].ConfigMap.Name = "x"
	pod.Spec.Containers = []v1.Container{{Name: "c", VolumeMounts: []v1.VolumeMount{{Name: "v"}}}}
	keep := pod.DeepCopy()
	keep.UID = "keep"
	if err := v.Mount(b.Context(), keep); err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		pod.UID = types.UID(fmt.Sprint("u", i))
		if err := v.Mount(b.Context(), pod); err != nil {
			b.Fatal(err)
		}
		if err := v.Unmount(b.Context(), pod.UID); err != nil {
			b.Fatal(err)
		}
	}
	if err := v.Unmount(b.Context(), "keep"); err != nil {
		b.Fatal(err)
	}
}
