package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A big image has pullLayers layers of files of pullFile bytes, half of them hard to compress.
const (
	pullLayers = 8
	pullFile   = 256 << 10
)

// library is a registry of ours on loopback with one big image in it.
type library struct {
	server *http.Server
	ref    string
	certs  string // folder of HOST/hosts.toml that says plain http
	size   int64  // bytes of all files
}

// pulled is what one pull cost.
type pulled struct {
	wall, cpu time.Duration
	memory    int64   // bytes: peak resident set of the runtime's processes
	disk      float64 // what the root folder grew by, as a multiple of the image's files
}

// openLibrary makes an image of mb MiB and serves it until close.
func openLibrary(dir string, mb int) (*library, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	host := listener.Addr().String()
	l := &library{ref: host + "/big:1", certs: filepath.Join(dir, "certs.d")}
	if err := os.MkdirAll(filepath.Join(dir, "blobs"), 0o755); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(l.certs, host), 0o755); err != nil {
		return nil, err
	}
	hosts := fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", host, host)
	if err := os.WriteFile(filepath.Join(l.certs, host, "hosts.toml"), []byte(hosts), 0o644); err != nil {
		return nil, err
	}
	quiet := log.New(io.Discard, "", 0)
	l.server = &http.Server{Handler: registry.New(registry.Logger(quiet), registry.WithBlobHandler(registry.NewDiskBlobHandler(filepath.Join(dir, "blobs")))), ErrorLog: quiet}
	go l.server.Serve(listener) // ends with close; a pull says what failed
	return l, l.fill(dir, mb)
}

func (l *library) close() {
	if l != nil {
		l.server.Close()
	}
}

func (l *library) fill(dir string, mb int) error {
	files := (mb << 20) / pullLayers / pullFile
	l.size = int64(files) * pullFile * pullLayers
	im := empty.Image
	for i := range pullLayers {
		file := filepath.Join(dir, fmt.Sprintf("layer%d.tar.gz", i))
		if err := writeLayer(file, i, files); err != nil {
			return err
		}
		layer, err := tarball.LayerFromFile(file)
		if err != nil {
			return err
		}
		if im, err = mutate.AppendLayers(im, layer); err != nil {
			return err
		}
	}
	config, err := im.ConfigFile()
	if err != nil {
		return err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	if im, err = mutate.ConfigFile(im, config); err != nil {
		return err
	}
	return l.push(im)
}

// push uploads an image in the simplest way that the protocol has. Source: OCI distribution spec, "single POST".
func (l *library) push(im v1.Image) error {
	layers, err := im.Layers()
	if err != nil {
		return err
	}
	config, err := partial.ConfigLayer(im)
	if err != nil {
		return err
	}
	repository := "http://" + strings.Replace(l.ref, "/big:1", "/v2/big", 1)
	for _, layer := range append(layers, config) {
		digest, err := layer.Digest()
		if err != nil {
			return err
		}
		blob, err := layer.Compressed()
		if err != nil {
			return err
		}
		err = upload(http.MethodPost, repository+"/blobs/uploads/?digest="+digest.String(), "application/octet-stream", blob)
		blob.Close()
		if err != nil {
			return err
		}
	}
	manifest, err := im.RawManifest()
	if err != nil {
		return err
	}
	kind, err := im.MediaType()
	if err != nil {
		return err
	}
	return upload(http.MethodPut, repository+"/manifests/1", string(kind), bytes.NewReader(manifest))
}

func upload(method, url, kind string, body io.Reader) error {
	request, err := http.NewRequest(method, url, body)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", kind)
	reply, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("fill the registry: %w", err)
	}
	defer reply.Body.Close()
	if reply.StatusCode/100 != 2 {
		text, _ := io.ReadAll(io.LimitReader(reply.Body, 1000))
		return fmt.Errorf("fill the registry: %s %s: %s: %s", method, url, reply.Status, text)
	}
	return nil
}

func writeLayer(path string, number, files int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buffer := bufio.NewWriterSize(f, 1<<20)
	zip, _ := gzip.NewWriterLevel(buffer, gzip.BestSpeed)
	w := tar.NewWriter(zip)
	random := rand.NewChaCha8([32]byte{byte(number)})
	data := make([]byte, pullFile)
	for i := range data[pullFile/2:] {
		data[pullFile/2+i] = "the quick brown fox jumps over "[i%31]
	}
	for i := range files {
		random.Read(data[:pullFile/2])
		h := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("data/%d/%d/%d", number, i/100, i), Mode: 0o644, Size: pullFile}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	for _, c := range []io.Closer{w, zip} {
		if err := c.Close(); err != nil {
			return err
		}
	}
	return buffer.Flush()
}

// pull has the runtime pull the big image, which it has never seen.
func (n *node) pull(ctx context.Context, l *library) (pulled, error) {
	ctx, stop := context.WithTimeout(ctx, 10*patience)
	defer stop()
	for _, pid := range members(n.group) {
		// resets the peak. Source: proc(5), /proc/PID/clear_refs, 5
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
			return pulled{}, err
		}
	}
	disk, used, begin := onDisk(n.dir), cpu(n.group), time.Now()
	if _, err := n.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: l.ref}}); err != nil {
		return pulled{}, fmt.Errorf("PullImage: %w", err)
	}
	p := pulled{wall: time.Since(begin)}
	if err := wait(ctx, settle); err != nil {
		return p, err
	}
	p.cpu = cpu(n.group) - used
	p.disk = float64(onDisk(n.dir)-disk) / float64(l.size)
	for _, pid := range members(n.group) {
		p.memory += peak(pid)
	}
	return p, nil
}

// peak is the highest resident set of a process. Source: proc(5), VmHWM.
func peak(pid int) int64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			return n << 10
		}
	}
	return 0
}

// onDisk is what a folder takes, written or still to be written.
func onDisk(dir string) (bytes int64) {
	syscall.Sync() // delayed allocation shows no blocks before
	filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // files vanish meanwhile
		}
		if info, err := e.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				bytes += st.Blocks * 512
			}
		}
		return nil
	})
	return bytes
}
