// Package bake builds container images from files and Debian packages, without a registry and without a container
// engine. Equal inputs give equal bytes: times are fixed, entries sorted, owners root.
// It is a tool for this repository's example and tests; the product never imports it.
package bake

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Recipe says what an image is made of. Each part becomes one layer, in this order; an absent one none.
type Recipe struct {
	Base  string   // "" for nothing, "busybox" for Debian's static busybox with all its applets
	Debs  []string // Debian packages: all their files, and the libraries their programs load
	Files []File
	// Config is taken as it is; without an Env it gets the usual PATH.
	Config v1.Config
	// Cache keeps downloaded packages; it is made if absent. Needed for Base and Debs.
	Cache string
}

// File is copied from the building machine; a dynamic program brings its libraries along.
type File struct {
	From, To string
	Mode     os.FileMode // 0 takes the source's permissions
}

// bare is what every image has, so that users resolve and temporary files have a place.
var bare = tree{
	"tmp":        {mode: os.ModeDir | os.ModeSticky | 0o777},
	"root":       {mode: os.ModeDir | 0o700},
	"etc/passwd": {mode: 0o644, body: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n")},
	"etc/group":  {mode: 0o644, body: []byte("root:x:0:\nnogroup:x:65534:\n")},
}

const busyboxDeb = "busybox-static"

const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Build makes the image.
// Errors name the package or file at fault.
func Build(ctx context.Context, r Recipe) (v1.Image, error) {
	layers := []tree{bare}
	debs := store{}
	if r.Cache != "" {
		var err error
		if debs.dir, err = filepath.Abs(r.Cache); err != nil { // apt and dpkg run elsewhere
			return nil, err
		}
	}
	all := slices.Clone(r.Debs)
	if r.Base == "busybox" {
		all = append(all, busyboxDeb)
	}
	if err := debs.ensure(ctx, all); err != nil {
		return nil, err
	}
	switch r.Base {
	case "":
	case "busybox":
		t, err := busybox(ctx, debs)
		if err != nil {
			return nil, fmt.Errorf("base busybox: %w", err)
		}
		layers = append(layers, t)
	default:
		return nil, fmt.Errorf("base %q: only busybox is known", r.Base)
	}
	if len(r.Debs) > 0 {
		t, err := debs.install(ctx, r.Debs)
		if err != nil {
			return nil, err
		}
		layers = append(layers, t)
	}
	if len(r.Files) > 0 {
		t, err := copied(r.Files)
		if err != nil {
			return nil, err
		}
		layers = append(layers, t)
	}
	return assemble(layers, r.Config)
}

func assemble(layers []tree, config v1.Config) (v1.Image, error) {
	img := empty.Image
	for _, t := range layers {
		data, err := t.tar()
		if err != nil {
			return nil, err
		}
		// Uncompressed: the archive is read once, from a local disk.
		l := static.NewLayer(data, types.DockerUncompressedLayer)
		if img, err = mutate.AppendLayers(img, l); err != nil {
			return nil, err
		}
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Created = "linux", runtime.GOARCH, v1.Time{Time: moment()}
	file.Config = config
	if len(file.Config.Env) == 0 {
		file.Config.Env = []string{searchPath}
	}
	return mutate.ConfigFile(img, file)
}

// moment is the time that all files and the image carry.
// Source: reproducible-builds.org, SOURCE_DATE_EPOCH.
func moment() time.Time {
	if n, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64); err == nil {
		return time.Unix(n, 0).UTC()
	}
	return time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
}

func busybox(ctx context.Context, debs store) (tree, error) {
	dir, err := debs.unpacked(ctx, busyboxDeb)
	if err != nil {
		return nil, err
	}
	program := filepath.Join(dir, "bin/busybox")
	out, err := exec.CommandContext(ctx, program, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list: %w", program, err)
	}
	body, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	t := tree{"bin/busybox": {mode: 0o755, body: body}}
	for _, applet := range strings.Fields(string(out)) {
		if applet != "busybox" {
			t[path.Join("bin", applet)] = node{mode: os.ModeSymlink | 0o777, link: "busybox"}
		}
	}
	return t, nil
}

// copied takes files from this machine, directories whole.
func copied(files []File) (tree, error) {
	t := tree{}
	for _, f := range files {
		to := strings.TrimPrefix(path.Clean("/"+f.To), "/")
		if err := t.addAll(f.From, to); err != nil {
			return nil, fmt.Errorf("file %s: %w", f.From, err)
		}
		if n, ok := t[to]; ok && f.Mode != 0 && n.mode.IsRegular() {
			n.mode = f.Mode.Perm()
			t[to] = n
		}
	}
	return t, t.addLibraries(context.Background(), machine{})
}

// machine finds libraries on the building machine.
type machine struct{}

func (machine) ahead(context.Context, []string) error { return nil }

func (machine) find(_ context.Context, lib string) (tree, error) {
	name, found := findLibrary("/", lib)
	if !found {
		return nil, fmt.Errorf("library %s: not on this machine", lib)
	}
	return fromDir("/", name), nil
}
