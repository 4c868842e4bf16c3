// Image builds a container image as a tar file, from Go programs, files and Debian packages.
//
//	go run ./tools/image -o web.tar -name worknode.example/web:1 -bin bin/web=/web -entrypoint /web
//	go run ./tools/image -o redis.tar -name worknode.example/redis:1 -deb redis-server,redis-tools -entrypoint redis-server
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"worknode/tools/image/bake"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// many is a flag that may come several times and may hold several values, parted by commas.
type many []string

func (m *many) String() string { return strings.Join(*m, ",") }
func (m *many) Set(v string) error {
	*m = append(*m, strings.Split(v, ",")...)
	return nil
}

// each is a flag that may come several times, one value each.
type each []string

func (e *each) String() string     { return strings.Join(*e, " ") }
func (e *each) Set(v string) error { *e = append(*e, v); return nil }

// command is a command line: words, or a JSON list where words have spaces.
type command []string

func (c *command) String() string { return strings.Join(*c, " ") }
func (c *command) Set(v string) error {
	if strings.HasPrefix(v, "[") {
		return json.Unmarshal([]byte(v), (*[]string)(c))
	}
	*c = strings.Fields(v)
	return nil
}

func run(ctx context.Context, args []string) error {
	var (
		names, bins, files, env, labels, volumes, ports each
		packages                                        many
		entrypoint, cmd                                 command
		r                                               bake.Recipe
	)
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	set := flag.NewFlagSet("image", flag.ContinueOnError)
	out := set.String("o", "", "`file` to write")
	format := set.String("format", "docker", "docker (docker-archive) or oci (OCI layout)")
	set.StringVar(&r.Cache, "cache", filepath.Join(cache, "worknode-debs"), "`folder` that keeps unpacked packages")
	set.StringVar(&r.Base, "base", "", "busybox, or nothing")
	set.Var(&names, "name", "name of the image, `repository:tag`; may be repeated")
	set.Var(&packages, "deb", "Debian `packages`, parted by commas")
	set.Var(&bins, "bin", "program to add, `path=/destination`; may be repeated")
	set.Var(&files, "file", "file or folder to add, `path=/destination`; may be repeated")
	set.Var(&entrypoint, "entrypoint", "`command` line, or a JSON list")
	set.Var(&cmd, "cmd", "default `arguments`, or a JSON list")
	set.Var(&env, "env", "`NAME=value`; may be repeated")
	set.Var(&labels, "label", "`name=value`; may be repeated")
	set.Var(&volumes, "volume", "`path` that the image declares a volume; may be repeated")
	set.Var(&ports, "port", "`port/protocol` that the image declares; may be repeated")
	set.StringVar(&r.Config.User, "user", "", "user to run as: `name or uid[:gid]`")
	set.StringVar(&r.Config.WorkingDir, "workdir", "", "working `directory`")
	set.StringVar(&r.Config.StopSignal, "stopsignal", "", "`signal` that asks the program to end")
	if err := set.Parse(args); err != nil {
		return err
	}
	switch {
	case set.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", set.Arg(0))
	case *out == "" || len(names) == 0:
		return errors.New("-o and -name are needed")
	}
	r.Debs = packages
	r.Config.Entrypoint, r.Config.Cmd, r.Config.Env = entrypoint, cmd, env
	r.Config.Labels, r.Config.Volumes, r.Config.ExposedPorts = pairs(labels), marks(volumes), marks(ports)
	for mode, list := range map[os.FileMode]each{0o755: bins, 0: files} {
		for _, f := range list {
			from, to, ok := strings.Cut(f, "=")
			if !ok || !strings.HasPrefix(to, "/") {
				return fmt.Errorf("%q: path=/destination expected", f)
			}
			r.Files = append(r.Files, bake.File{From: from, To: to, Mode: mode})
		}
	}
	return build(ctx, r, *format, *out, names)
}

func build(ctx context.Context, r bake.Recipe, format, out string, names []string) error {
	write := map[string]func(string, []string, v1.Image) error{"docker": bake.WriteDocker, "oci": bake.WriteOCI}[format]
	if write == nil {
		return fmt.Errorf("format %q: docker or oci", format)
	}
	img, err := bake.Build(ctx, r)
	if err != nil {
		return err
	}
	return write(out, names, img)
}

func pairs(list []string) map[string]string {
	out := map[string]string{}
	for _, l := range list {
		k, v, _ := strings.Cut(l, "=")
		out[k] = v
	}
	return out
}

func marks(list []string) map[string]struct{} {
	out := map[string]struct{}{}
	for _, l := range list {
		out[l] = struct{}{}
	}
	return out
}
