package translate

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"path/filepath"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
)

// ImageFacts is what the runtime told about a container's image.
type ImageFacts struct {
	ID   string // what ContainerConfig.Image names: the runtime's image id
	User string // of the image's config if it is a name; empty otherwise
	UID  *int64 // of the image's config if it is a number
}

// ContainerInput is all that decides how one container starts.
type ContainerInput struct {
	Pod          *v1.Pod
	Container    *v1.Container
	RestartCount int
	PodIPs       []string
	Node         Node
	Image        ImageFacts
	Volumes      map[string]string // volume name to path on the host
	SubPaths     map[int]string    // index into Container.VolumeMounts to the prepared host path, for mounts with a subPath
	Objects      Objects
	Services     []*v1.Service // of the pod's namespace, and kubernetes of namespace default; others are ignored
	TargetID     string        // the container whose PID namespace an ephemeral container joins; empty for all others

	HostsFile       string // on the host, becomes /etc/hosts; empty: none
	TerminationFile string // on the host, becomes the container's terminationMessagePath; empty: none
}

const etcHosts = "/etc/hosts"

// Container returns the config of one attempt of a container.
// Errors: those of the package; the texts are the ones of upstream, which users and tools know.
func Container(in ContainerInput) (*cri.ContainerConfig, error) {
	c := in.Container
	env, err := environ(&in)
	if err != nil {
		return nil, err
	}
	mounts, err := mounts(&in, env)
	if err != nil {
		return nil, err
	}
	security, err := containerSecurity(&in)
	if err != nil {
		return nil, err
	}
	labels := podLabels(in.Pod, 1)
	labels[LabelContainerName] = c.Name
	return &cri.ContainerConfig{
		Metadata:    &cri.ContainerMetadata{Name: c.Name, Attempt: uint32(in.RestartCount)},
		Image:       &cri.ImageSpec{Image: in.Image.ID, UserSpecifiedImage: c.Image},
		Command:     expandAll(c.Command, env),
		Args:        expandAll(c.Args, env),
		WorkingDir:  c.WorkingDir,
		Envs:        env.cri(),
		Mounts:      mounts,
		Labels:      labels,
		Annotations: notes(&in),
		LogPath:     LogPath(c.Name, in.RestartCount),
		Stdin:       c.Stdin,
		StdinOnce:   c.StdinOnce,
		Tty:         c.TTY,
		StopSignal:  stopSignal(c),
		Linux: &cri.LinuxContainerConfig{
			Resources:       containerResources(in.Pod, c, in.Node),
			SecurityContext: security,
		},
	}, nil
}

// LogPath is a container's log file below its pod's LogDir.
func LogPath(container string, restart int) string {
	return filepath.Join(container, strconv.Itoa(restart)+".log")
}

func expandAll(words []string, env *environment) []string {
	if len(words) == 0 {
		return nil
	}
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = Expand(w, env.get)
	}
	return out
}

func stopSignal(c *v1.Container) cri.Signal {
	if c.Lifecycle == nil || c.Lifecycle.StopSignal == nil {
		return cri.Signal_SIGNAL_RUNTIME_DEFAULT
	}
	return cri.Signal(cri.Signal_value[string(*c.Lifecycle.StopSignal)])
}

// notes are what the kubelet must find again after a restart without the API server: how to end the container, and
// whether it still is the container that the pod asks for.
func notes(in *ContainerInput) map[string]string {
	c := in.Container
	out := map[string]string{
		NoteHash:              Hash(c),
		NoteRestartCount:      strconv.Itoa(in.RestartCount),
		NoteTerminationPath:   c.TerminationMessagePath,
		NoteTerminationPolicy: string(c.TerminationMessagePolicy),
	}
	if s := in.Pod.Spec.TerminationGracePeriodSeconds; s != nil {
		out[NoteTerminationGrace] = strconv.FormatInt(*s, 10)
	}
	if s := in.Pod.DeletionGracePeriodSeconds; s != nil {
		out[NoteDeletionGrace] = strconv.FormatInt(*s, 10)
	}
	if c.Lifecycle != nil && c.Lifecycle.PreStop != nil {
		if text, err := json.Marshal(c.Lifecycle.PreStop); err == nil {
			out[NotePreStop] = string(text)
		}
	}
	if len(c.Ports) > 0 {
		if text, err := json.Marshal(c.Ports); err == nil {
			out[NotePorts] = string(text)
		}
	}
	return out
}

// Hash names what of a container cannot change while it runs: a container whose hash differs is replaced.
// Those are its name and image; resources change in place, everything else is immutable in the API.
func Hash(c *v1.Container) string {
	h := fnv.New32a()
	fmt.Fprintf(h, "%q %q", c.Name, c.Image)
	return strconv.FormatUint(uint64(h.Sum32()), 16)
}

// mounts lists what a container sees beside its image, in the order of the spec; /etc/hosts and the termination
// message come last, and /etc/hosts only if no volume is mounted there.
func mounts(in *ContainerInput, env *environment) ([]*cri.Mount, error) {
	out := make([]*cri.Mount, 0, len(in.Container.VolumeMounts)+2)
	ownHosts := false
	for i := range in.Container.VolumeMounts {
		m, err := mount(in, i, env)
		if err != nil {
			return nil, err
		}
		ownHosts = ownHosts || filepath.Clean(m.ContainerPath) == etcHosts
		out = append(out, m)
	}
	if in.HostsFile != "" && !ownHosts {
		out = append(out, &cri.Mount{ContainerPath: etcHosts, HostPath: in.HostsFile})
	}
	if path := in.Container.TerminationMessagePath; path != "" && in.TerminationFile != "" {
		out = append(out, &cri.Mount{ContainerPath: rooted(path), HostPath: in.TerminationFile})
	}
	return out, nil
}

func rooted(path string) string {
	if strings.HasPrefix(path, "/") {
		return path
	}
	return "/" + path
}

func mount(in *ContainerInput, i int, env *environment) (*cri.Mount, error) {
	vm := &in.Container.VolumeMounts[i]
	host, ok := in.Volumes[vm.Name]
	if !ok {
		return nil, fault.New(fault.NotFound, "cannot find volume %q to mount into container %q", vm.Name, in.Container.Name)
	}
	sub, err := subPath(vm, env)
	if err != nil {
		return nil, err
	}
	if sub != "" {
		if host, ok = in.SubPaths[i]; !ok {
			return nil, fault.New(fault.Temporary, "failed to prepare subPath for volumeMount %q of container %q", vm.Name, in.Container.Name)
		}
	}
	m := &cri.Mount{
		ContainerPath: rooted(vm.MountPath),
		HostPath:      host,
		Readonly:      vm.ReadOnly || fromAPI(in.Pod, vm.Name),
	}
	if vm.MountPropagation != nil {
		switch *vm.MountPropagation {
		case v1.MountPropagationHostToContainer:
			m.Propagation = cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		case v1.MountPropagationBidirectional:
			m.Propagation = cri.MountPropagation_PROPAGATION_BIDIRECTIONAL
		}
	}
	m.RecursiveReadOnly, err = recursive(vm, m, in.Node)
	return m, err
}

// fromAPI tells volumes whose content is the kubelet's to write: containers see them read-only.
func fromAPI(pod *v1.Pod, name string) bool {
	for i := range pod.Spec.Volumes {
		if v := &pod.Spec.Volumes[i]; v.Name == name {
			return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
		}
	}
	return false
}

func recursive(vm *v1.VolumeMount, m *cri.Mount, node Node) (bool, error) {
	if vm.RecursiveReadOnly == nil || *vm.RecursiveReadOnly == v1.RecursiveReadOnlyDisabled {
		return false, nil
	}
	possible := node.RecursiveReadOnly && m.Propagation == cri.MountPropagation_PROPAGATION_PRIVATE
	if *vm.RecursiveReadOnly == v1.RecursiveReadOnlyIfPossible {
		return possible && vm.ReadOnly, nil
	}
	if !vm.ReadOnly {
		return false, fault.New(fault.Invalid, "volume %q requested recursive read-only mode, but it is not read-only", vm.Name)
	}
	if !possible {
		return false, fault.New(fault.Unsupported, "volume %q requested recursive read-only mode, but it is not supported by the runtime or its mount propagation", vm.Name)
	}
	return true, nil
}

// SubPath returns the path inside its volume that a mount of the container names, subPathExpr expanded; empty: all of it.
// in needs no Volumes and no SubPaths for this.
// Errors: Invalid if it leaves the volume or a variable is missing, and those of Container's environment.
func SubPath(in ContainerInput, i int) (string, error) {
	vm := &in.Container.VolumeMounts[i]
	if vm.SubPathExpr == "" {
		return subPath(vm, nil)
	}
	env, err := environ(&in)
	if err != nil {
		return "", err
	}
	return subPath(vm, env)
}

func subPath(vm *v1.VolumeMount, env *environment) (string, error) {
	sub := vm.SubPath
	if vm.SubPathExpr != "" {
		var missing []string
		sub = Expand(vm.SubPathExpr, func(name string) (string, bool) {
			v, ok := env.get(name)
			if !ok || v == "" {
				missing = append(missing, name)
			}
			return v, ok
		})
		if len(missing) > 0 {
			return "", fault.New(fault.Invalid, "missing value for %q", strings.Join(missing, `", "`))
		}
	}
	if sub == "" {
		return "", nil
	}
	if filepath.IsAbs(sub) {
		return "", fault.New(fault.Invalid, "error SubPath `%s` must not be an absolute path", sub)
	}
	if !filepath.IsLocal(sub) {
		return "", fault.New(fault.Invalid, "unable to provision SubPath `%s`: must not contain '..'", sub)
	}
	return sub, nil
}
