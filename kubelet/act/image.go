package act

import (
	"context"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/kubelet/plan"
	"worknode/kubelet/state"
)

// pullTime bounds one pull; the runtime watches its progress.
const pullTime = time.Hour

// ensureImage finds a container's image, or pulls it, as its pull policy says.
// Source: API docs of Container.imagePullPolicy.
func (a *Act) ensureImage(ctx context.Context, pod *v1.Pod, t plan.EnsureImage) plan.Result {
	spec, _ := plan.Lookup(pod, t.Container)
	if spec == nil {
		return wrong(fault.New(fault.Invalid, "pod %s has no container %s", pod.Name, t.Container), "ImageInspectError")
	}
	have, err := a.image(ctx, spec.Image)
	if err != nil {
		if kindOf(err) == fault.Invalid {
			return wrong(fault.New(fault.Invalid, "Failed to apply default image tag \"%s\": %s", spec.Image, text(err)), "InvalidImageName")
		}
		return wrong(fmt.Errorf("Failed to inspect image \"%s\": %w", spec.Image, err), "ImageInspectError")
	}
	say := func(warning bool, reason, format string, args ...any) {
		a.Say(pod, plan.Say{Container: spec.Name, Warning: warning, Reason: reason, Message: fmt.Sprintf(format, args...)})
	}
	policy := spec.ImagePullPolicy
	if have != nil && policy != v1.PullAlways {
		say(false, "Pulled", "Container image \"%s\" already present on machine", spec.Image)
		return plan.Result{Image: have}
	}
	if policy == v1.PullNever {
		return wrong(fault.New(fault.NotFound, "Container image \"%s\" is not present with pull policy of Never", spec.Image), "ErrImageNeverPull")
	}
	say(false, "Pulling", "Pulling image \"%s\"", spec.Image)
	began := time.Now()
	if err := a.pull(ctx, pod, spec); err != nil {
		kind := kindOf(err)
		r := wrong(fmt.Errorf("Failed to pull image \"%s\": %s", spec.Image, text(err)), "ErrImagePull")
		r.Kind = kind
		return r
	}
	have, err = a.image(ctx, spec.Image)
	if err == nil && have == nil {
		err = fault.New(fault.NotFound, "the runtime pulled it and does not know it")
	}
	if err != nil {
		return wrong(fmt.Errorf("Failed to inspect image \"%s\": %w", spec.Image, err), "ImageInspectError")
	}
	say(false, "Pulled", "Successfully pulled image \"%s\" in %s", spec.Image, time.Since(began).Truncate(time.Millisecond))
	return plan.Result{Image: have}
}

func (a *Act) pull(ctx context.Context, pod *v1.Pod, spec *v1.Container) error {
	ctx, cancel := context.WithTimeout(ctx, pullTime)
	defer cancel()
	_, err := a.Images.PullImage(ctx, &cri.PullImageRequest{
		Image: &cri.ImageSpec{Image: spec.Image, UserSpecifiedImage: spec.Image},
		SandboxConfig: &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{
			Name: pod.Name, Namespace: pod.Namespace, Uid: string(pod.UID),
		}},
	})
	return err
}

// image asks the runtime for an image; nil if it has none of that name.
func (a *Act) image(ctx context.Context, name string) (*state.Image, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	r, err := a.Images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name, UserSpecifiedImage: name}})
	if err != nil && kindOf(err) == fault.NotFound {
		return nil, nil
	}
	if err != nil || r.Image == nil || r.Image.Id == "" {
		return nil, err
	}
	img := &state.Image{Name: name, ID: r.Image.Id, Ref: r.Image.Id, User: r.Image.Username}
	if len(r.Image.RepoDigests) > 0 {
		img.Ref = r.Image.RepoDigests[0]
	}
	if r.Image.Uid != nil {
		uid := r.Image.Uid.Value
		img.UID = &uid
	}
	return img, nil
}
