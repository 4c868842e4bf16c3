package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// The images: the workload sleeps, and the pause image that containerd needs does the same.
const (
	workload = "bench.local/sleep:1"
	pause    = "bench.local/pause:1"
)

// writeImages makes both as tar files in dir, from Debian's static busybox.
func writeImages(dir string) error {
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("%w (install busybox-static)", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, d := range []string{"bin/", "etc/", "proc/", "sys/", "dev/", "tmp/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755}); err != nil {
			return err
		}
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755, Size: int64(len(program))}); err != nil {
		return err
	}
	if _, err := w.Write(program); err != nil {
		return err
	}
	for _, applet := range []string{"sh", "sleep", "true"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: "bin/" + applet, Linkname: "bin/busybox", Mode: 0o755}); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		return err
	}
	for file, tag := range map[string]string{"sleep.tar": workload, "pause.tar": pause} {
		if err := writeImage(filepath.Join(dir, file), tag, layer); err != nil {
			return err
		}
	}
	return nil
}

func writeImage(path, tag string, layer v1.Layer) error {
	im, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	// containerd looks for the platform of an image that it unpacks
	file, err := im.ConfigFile()
	if err != nil {
		return err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", arch
	file.Config = v1.Config{Entrypoint: []string{"/bin/sleep", "1000000"}, Env: []string{"PATH=/bin"}, Labels: map[string]string{"bench": tag}}
	if im, err = mutate.ConfigFile(im, file); err != nil {
		return err
	}
	ref, err := name.NewTag(tag)
	if err != nil {
		return err
	}
	return tarball.WriteToFile(path, ref, im)
}
