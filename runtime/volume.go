package runtime

import (
	"path"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"worknode/fault"
	"worknode/runtime/act"
	"worknode/runtime/state"
)

// mountImages finds the images that a container mounts as volumes, and notes in the request's copy which they were, as
// status shows it. Source: CRI Mount.image; KEP-4639, KEP-5365.
// Errors: NotFound for an image that is not on the node; Invalid for a sub path that is not in it.
func (l *loop) mountImages(c *state.Container) error {
	for i, m := range c.Config.GetMounts() {
		ref := m.GetImage().GetImage()
		if ref == "" {
			continue
		}
		im, ok := l.images.Get(ref)
		if !ok {
			return fault.Hint(volumeError(fault.NotFound, m, "image %q is not on this node", ref), "pull it first")
		}
		lower, err := act.Subtree(l.images.Base(), im.Layers, m.GetImageSubPath())
		if err != nil {
			return volumeError(fault.Invalid, m, "image %q: %w", ref, err)
		}
		c.Volumes = append(c.Volumes, state.Volume{Destination: path.Clean(m.GetContainerPath()), ImageID: im.ID, Lower: lower})
		if len(c.Volumes) == 1 {
			c.Config = proto.CloneOf(c.Config) // the request is the client's
		}
		c.Config.Mounts[i].Image.ImageRef = im.ID
	}
	return nil
}

// volumeError carries the word by which kubelet knows that an image volume is the reason.
func volumeError(kind fault.Kind, m *cri.Mount, format string, args ...any) error {
	return fault.New(kind, "%w: mount %s: %w", crierrors.ErrImageVolumeMountFailed, m.GetContainerPath(), fault.New(kind, format, args...))
}

// useImages keeps a container's images on the disk though they may be removed; releaseImages lets go of them.
func (l *loop) useImages(c *state.Container) {
	l.images.Use(c.ImageID)
	for _, v := range c.Volumes {
		l.images.Use(v.ImageID)
	}
}

func (l *loop) releaseImages(c *state.Container) {
	l.images.Release(c.ImageID)
	for _, v := range c.Volumes {
		l.images.Release(v.ImageID)
	}
}
