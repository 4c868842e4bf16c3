// Package volume makes a pod's volumes present on the node, keeps their content current, and removes them again, along
// with the other files a pod has there (hosts file, termination messages, subPaths).
//
// Layout below the kubelet's root:
//
//	pods/<uid>/etc-hosts                                    the pod's hosts file
//	pods/<uid>/containers/<name>/<restart>                  termination message of one attempt
//	pods/<uid>/volumes/kubernetes.io~empty-dir/<volume>     emptyDir; with medium Memory a tmpfs is mounted here
//	pods/<uid>/volume-subpaths/<volume>/<container>/<n>     bind mounts of subPaths
//	objects/<uid>/<volume>                                  configMap, secret, downwardAPI and projected volumes
//
// objects is one tmpfs for the whole node: secrets never rest on a disk, and a pod costs no mount for them. It is
// mounted with the first such volume and goes with the last. Whatever is there is found by looking: a restarted kubelet
// needs no records, and Unmount works for pods it knows nothing of.
//
// It does not decide when a volume is needed, and knows no container runtime.
package volume

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"worknode/fault"
	"worknode/kubelet/translate"
)

// Objects gives the API objects that volumes are made of.
// Errors: NotFound if there is none, Temporary if it is not known yet, Unsupported if the API serves no such thing.
type Objects interface {
	ConfigMap(ctx context.Context, ns, name string) (*v1.ConfigMap, error)
	Secret(ctx context.Context, ns, name string) (*v1.Secret, error)
	// Token returns a token for the pod's service account that is good for a while; it may be one given before.
	Token(ctx context.Context, pod *v1.Pod, want *v1.ServiceAccountTokenProjection) (string, error)
}

// Config is what Volumes need. All fields are required.
type Config struct {
	Root    string // the kubelet's root directory, absolute
	Objects Objects
	Node    func() translate.Node // for the hosts file, and for limits that containers do not set
	Now     func() time.Time
}

// Volumes is safe for concurrent use; calls for one pod wait for each other, calls for different pods do not.
type Volumes struct {
	cfg    Config
	shared shared
	swaps  atomic.Bool // the kernel has no tmpfs without swap

	mu   sync.Mutex
	busy map[types.UID]*turn
}

// turn is one pod's place in line; users counts who holds or awaits it.
type turn struct {
	sync.Mutex
	users int
}

// New returns the Volumes below cfg.Root. It touches nothing yet.
func New(cfg Config) *Volumes {
	return &Volumes{
		cfg: cfg, busy: map[types.UID]*turn{},
		shared: shared{dir: filepath.Join(cfg.Root, "objects"), root: cfg.Root},
	}
}

// lock waits for a pod's turn and returns what ends it.
func (v *Volumes) lock(uid types.UID) (unlock func()) {
	v.mu.Lock()
	t := v.busy[uid]
	if t == nil {
		t = &turn{}
		v.busy[uid] = t
	}
	t.users++
	v.mu.Unlock()
	t.Lock()
	return func() {
		t.Unlock()
		v.mu.Lock()
		defer v.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(v.busy, uid)
		}
	}
}

// Mount makes every volume that a container of the pod mounts present and current.
// Errors: one for all volumes that are not; their kind is NotFound or Temporary if the same call may succeed later,
// Invalid or Unsupported if it will not. The text is that of the FailedMount event.
// Repeat: safe, and it leaves what a container did to its emptyDir. Crash: Mount again or Unmount.
func (v *Volumes) Mount(ctx context.Context, pod *v1.Pod) error {
	if err := plainName("pod uid", string(pod.UID)); err != nil {
		return err
	}
	defer v.lock(pod.UID)()
	return v.each(pod, func(vol *v1.Volume) error { return v.setUp(ctx, pod, vol) })
}

// Refresh brings the files of configMap, secret, downwardAPI and projected volumes up to date. A container sees all of a
// change at once or nothing of it. Volumes that are not there are left alone.
// Errors and repeat: as Mount. On an error the files stay as they were.
func (v *Volumes) Refresh(ctx context.Context, pod *v1.Pod) error {
	if err := plainName("pod uid", string(pod.UID)); err != nil {
		return err
	}
	defer v.lock(pod.UID)()
	return v.each(pod, func(vol *v1.Volume) error {
		if !fromAPI(vol) {
			return nil
		}
		if _, err := os.Lstat(v.path(pod.UID, vol)); err != nil {
			return nil //nolint:nilerr // not mounted, or not any more
		}
		return v.setUp(ctx, pod, vol)
	})
}

// each calls do for every volume in use and joins what fails.
func (v *Volumes) each(pod *v1.Pod, do func(*v1.Volume) error) error {
	used := inUse(pod)
	var texts []string
	kind := fault.Unknown
	for i := range pod.Spec.Volumes {
		vol := &pod.Spec.Volumes[i]
		if !used[vol.Name] {
			continue
		}
		if err := do(vol); err != nil {
			if len(texts) == 0 {
				kind = fault.Of(err)
			}
			texts = append(texts, `MountVolume.SetUp failed for volume "`+vol.Name+`" : `+err.Error())
		}
	}
	if len(texts) == 0 {
		return nil
	}
	return fault.New(kind, "%s", strings.Join(texts, "; "))
}

// inUse names the volumes that a container mounts: others may name what does not exist.
func inUse(pod *v1.Pod) map[string]bool {
	used := map[string]bool{}
	add := func(mounts []v1.VolumeMount, devices []v1.VolumeDevice) {
		for _, m := range mounts {
			used[m.Name] = true
		}
		for _, d := range devices {
			used[d.Name] = true
		}
	}
	for i := range pod.Spec.InitContainers {
		add(pod.Spec.InitContainers[i].VolumeMounts, pod.Spec.InitContainers[i].VolumeDevices)
	}
	for i := range pod.Spec.Containers {
		add(pod.Spec.Containers[i].VolumeMounts, pod.Spec.Containers[i].VolumeDevices)
	}
	for i := range pod.Spec.EphemeralContainers {
		add(pod.Spec.EphemeralContainers[i].VolumeMounts, pod.Spec.EphemeralContainers[i].VolumeDevices)
	}
	return used
}

func (v *Volumes) setUp(ctx context.Context, pod *v1.Pod, vol *v1.Volume) error {
	if err := plainName("volume", vol.Name); err != nil {
		return err
	}
	switch {
	case fromAPI(vol):
		return v.setUpObjects(ctx, pod, vol)
	case vol.EmptyDir != nil:
		return v.setUpEmptyDir(pod, vol)
	case vol.HostPath != nil:
		return setUpHostPath(vol.HostPath)
	}
	if vol.VolumeSource == (v1.VolumeSource{}) { // the API's default source
		return v.setUpEmptyDir(pod, vol)
	}
	return fault.New(fault.Unsupported, "volume kind %s is not supported yet", kindName(vol))
}

func fromAPI(vol *v1.Volume) bool {
	return vol.ConfigMap != nil || vol.Secret != nil || vol.DownwardAPI != nil || vol.Projected != nil
}

// kindName names a volume's source as the API does, with the one thing that identifies it.
func kindName(vol *v1.Volume) string {
	switch s := vol.VolumeSource; {
	case s.PersistentVolumeClaim != nil:
		return "persistentVolumeClaim (claim " + s.PersistentVolumeClaim.ClaimName + ")"
	case s.CSI != nil:
		return "csi (driver " + s.CSI.Driver + ")"
	case s.Ephemeral != nil:
		return "ephemeral"
	case s.Image != nil:
		return "image (" + s.Image.Reference + ")"
	case s.NFS != nil:
		return "nfs (" + s.NFS.Server + ":" + s.NFS.Path + ")"
	case s.ISCSI != nil:
		return "iscsi (" + s.ISCSI.IQN + ")"
	case s.FC != nil:
		return "fc"
	case s.GitRepo != nil:
		return "gitRepo (" + s.GitRepo.Repository + ")"
	}
	return "of this source"
}

// plainName guards every path that is built from a name of the API: one element, and none that starts with two dots.
func plainName(what, name string) error {
	if name == "" || name == "." || strings.HasPrefix(name, "..") || strings.ContainsAny(name, "/\x00") {
		return fault.New(fault.Invalid, "%s %q cannot be the name of a file", what, name)
	}
	return nil
}

func (v *Volumes) podDir(uid types.UID) string {
	return filepath.Join(v.cfg.Root, "pods", string(uid))
}

// path is where a volume is or will be on the node.
func (v *Volumes) path(uid types.UID, vol *v1.Volume) string {
	switch {
	case vol.HostPath != nil:
		return vol.HostPath.Path
	case fromAPI(vol):
		return filepath.Join(v.shared.dir, string(uid), vol.Name)
	}
	return filepath.Join(v.podDir(uid), "volumes", "kubernetes.io~empty-dir", vol.Name)
}

// Paths maps the pod's volumes to their places on the node, whether they are there yet or not.
func (v *Volumes) Paths(pod *v1.Pod) map[string]string {
	out := make(map[string]string, len(pod.Spec.Volumes))
	for i := range pod.Spec.Volumes {
		vol := &pod.Spec.Volumes[i]
		out[vol.Name] = v.path(pod.UID, vol)
	}
	return out
}
