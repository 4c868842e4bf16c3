package cri

import (
	"archive/tar"
	"bytes"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// addImage puts an image of files into the runtime, one layer per map; names that end in / are folders.
func (n *node) addImage(tag string, layers ...map[string]string) {
	n.t.Helper()
	im := empty.Image
	for _, files := range layers {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for file, text := range files {
			h := &tar.Header{Typeflag: tar.TypeReg, Name: file, Mode: 0o644, Size: int64(len(text))}
			if strings.HasSuffix(file, "/") {
				h.Typeflag, h.Mode = tar.TypeDir, 0o755
			}
			if target, ok := strings.CutPrefix(text, "-> "); ok {
				h.Typeflag, h.Linkname, h.Size, text = tar.TypeSymlink, target, 0, ""
			}
			if err := w.WriteHeader(h); err != nil {
				n.t.Fatal(err)
			}
			if _, err := w.Write([]byte(text)); err != nil {
				n.t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			n.t.Fatal(err)
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
		if err != nil {
			n.t.Fatal(err)
		}
		if im, err = mutate.AppendLayers(im, layer); err != nil {
			n.t.Fatal(err)
		}
	}
	ref, err := name.NewTag(tag)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := tarball.WriteToFile(filepath.Join(n.dir, "images", "more.tar"), ref, im); err != nil {
		n.t.Fatal(err)
	}
	n.until("import of "+tag, func() bool {
		r, err := n.images.ImageStatus(n.ctx(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: tag}})
		return err == nil && r.Image != nil
	})
}

// TestImageVolumes mounts an image whole and in parts; whiteouts, links and layers are as in a container's root.
func TestImageVolumes(t *testing.T) {
	n := newNode(t)
	const tag = "example.test/data:1"
	n.addImage(tag,
		map[string]string{"d/": "", "d/old": "old", "d/gone": "gone", "one/": "", "one/file": "low", "link": "-> /d"},
		map[string]string{"d/.wh.gone": "", "d/new": "new"})
	box := n.podConfig()
	pod := n.runPod(box)
	volume := func(at, sub string) *cri.Mount {
		return &cri.Mount{ContainerPath: at, Readonly: true, Image: &cri.ImageSpec{Image: tag}, ImageSubPath: sub}
	}
	c := config("c", "sleep 1000")
	c.Mounts = []*cri.Mount{volume("/all", ""), volume("/all-d", "d"), volume("/by-link", "link"), volume("/one", "one"), volume("/file", "d/new")}
	id := n.run(pod, box, c)
	for script, want := range map[string]string{
		"cat /all/d/old /all/d/new /all/one/file": "oldnewlow",
		"ls /all/d":                         "new\nold\n",
		"ls /all-d":                         "new\nold\n",
		"ls /by-link":                       "new\nold\n",
		"cat /one/file":                     "low",
		"cat /file":                         "new",
		"touch /all/x 2>/dev/null || echo":  "\n",
		"touch /one/x 2>/dev/null || echo":  "\n",
		"echo x 2>/dev/null >/file || echo": "\n",
	} {
		if got := n.sh(id, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	im, err := n.images.ImageStatus(n.ctx(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: tag}})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range n.status(id).Mounts {
		if m.Image.GetImageRef() != im.Image.Id {
			t.Errorf("mount %s: image_ref %q, want %q", m.ContainerPath, m.Image.GetImageRef(), im.Image.Id)
		}
	}
	// The image may go while it is mounted, the runtime may restart, and the volume stays.
	if _, err := n.images.RemoveImage(n.ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: tag}}); err != nil {
		t.Fatal(err)
	}
	n.killRuntime()
	n.start()
	if got := n.sh(id, "cat /all/d/old /one/file"); got != "oldlow" {
		t.Errorf("after the image was removed: %q", got)
	}
}

func TestImageVolumesRefused(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	for name, row := range map[string]struct {
		mount *cri.Mount
		code  codes.Code
	}{
		"writable":       {&cri.Mount{Image: &cri.ImageSpec{Image: busybox}}, codes.InvalidArgument},
		"absent image":   {&cri.Mount{Image: &cri.ImageSpec{Image: "nowhere/x"}, Readonly: true}, codes.NotFound},
		"absent part":    {&cri.Mount{Image: &cri.ImageSpec{Image: busybox}, Readonly: true, ImageSubPath: "nothing"}, codes.InvalidArgument},
		"outside":        {&cri.Mount{Image: &cri.ImageSpec{Image: busybox}, Readonly: true, ImageSubPath: "../etc"}, codes.InvalidArgument},
		"with host_path": {&cri.Mount{Image: &cri.ImageSpec{Image: busybox}, Readonly: true, HostPath: "/tmp"}, codes.InvalidArgument},
	} {
		row.mount.ContainerPath = "/v"
		c := config("c", "true")
		c.Mounts = []*cri.Mount{row.mount}
		_, err := n.cri.CreateContainer(n.ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: box})
		if status.Code(err) != row.code {
			t.Errorf("%s: %v, want %s", name, err, row.code)
		}
	}
}
