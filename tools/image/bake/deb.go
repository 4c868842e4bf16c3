package bake

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// store is a folder of unpacked Debian packages: dir/NAME is the file system of package NAME. A package that is there
// is used as it is, without asking apt; delete the folder to get newer ones.
type store struct{ dir string }

// noise are paths of packages that no container needs.
var noise = regexp.MustCompile(`^(usr/share/(doc|man|lintian|locale|bash-completion|bug|info|doc-base)|lib/systemd|etc/(init\.d|logrotate\.d|default))(/|$)`)

// install returns all files of the packages, less documentation and service scripts, and the libraries they load.
// Libraries come from the packages' dependencies; of those nothing else is taken.
func (s store) install(ctx context.Context, names []string) (tree, error) {
	t := tree{}
	for _, name := range names {
		dir, err := s.unpacked(ctx, name)
		if err != nil {
			return nil, err
		}
		all := tree{}
		if err := all.addAll(dir, ""); err != nil {
			return nil, fmt.Errorf("package %s: %w", name, err)
		}
		for file, n := range all {
			if !noise.MatchString(file) {
				t[file] = n
			}
		}
	}
	if err := t.addLibraries(ctx, &dependencies{s: s, of: names}); err != nil {
		return nil, fmt.Errorf("packages %s: %w", strings.Join(names, ", "), err)
	}
	return t, nil
}

// dependencies finds libraries among those that packages depend on.
type dependencies struct {
	s    store
	of   []string
	libs []string // package names, once asked for
}

// ahead fetches the package that most likely has each library, all in one go: apt takes a second for any one.
func (d *dependencies) ahead(ctx context.Context, libs []string) error {
	if len(libs) == 0 {
		return nil
	}
	if d.libs == nil {
		var err error
		if d.libs, err = d.s.libraryPackages(ctx, d.of); err != nil {
			return err
		}
	}
	var likely []string
	for _, lib := range libs {
		if list := d.ranked(lib); len(list) > 0 && likelihood(lib, list[0]) > 0 {
			likely = append(likely, list[0])
		}
	}
	return d.s.ensure(ctx, likely)
}

func (d *dependencies) ranked(lib string) []string {
	list := slices.Clone(d.libs)
	slices.SortStableFunc(list, func(a, b string) int { return likelihood(lib, b) - likelihood(lib, a) })
	return list
}

func (d *dependencies) find(ctx context.Context, lib string) (tree, error) {
	for _, name := range d.ranked(lib) {
		dir, err := d.s.unpacked(ctx, name)
		if err != nil {
			return nil, err
		}
		if file, ok := findLibrary(dir, lib); ok {
			return fromDir(dir, file), nil
		}
	}
	return nil, fmt.Errorf("library %s: in none of %s", lib, strings.Join(d.libs, ", "))
}

// likelihood guesses by Debian's naming rule (policy 8.1): libssl.so.3 is in libssl3, libgcc_s.so.1 in libgcc-s1.
func likelihood(lib, pkg string) int {
	base := filepath.Base(lib)
	stem, version, _ := strings.Cut(base, ".so")
	guess := strings.ToLower(strings.ReplaceAll(stem+strings.TrimPrefix(version, "."), "_", "-"))
	switch {
	case pkg == guess:
		return 3
	case pkg == "libc6" && (strings.HasPrefix(base, "ld-linux") || slices.Contains([]string{"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"}, base)):
		return 3
	case pkg == "libssl3" && stem == "libcrypto":
		return 3
	case strings.HasPrefix(pkg, strings.TrimRight(stem, "0123456789.")):
		return 2
	}
	return 0
}

// libraryPackages lists the libraries among all that the packages depend on, by package name.
func (s store) libraryPackages(ctx context.Context, names []string) ([]string, error) {
	list := filepath.Join(s.dir, "depends-"+strings.Join(slices.Sorted(slices.Values(names)), "+"))
	data, err := os.ReadFile(list)
	if errors.Is(err, os.ErrNotExist) {
		args := append([]string{"depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts",
			"--no-breaks", "--no-replaces", "--no-enhances"}, names...)
		out, err := run(ctx, s.dir, "apt-cache", args...)
		if err != nil {
			return nil, err
		}
		var libs []string
		for line := range strings.Lines(string(out)) {
			if name := strings.TrimSpace(line); strings.HasPrefix(line, "lib") && !slices.Contains(libs, name) && !strings.Contains(name, ":") {
				libs = append(libs, name)
			}
		}
		slices.Sort(libs)
		data = []byte(strings.Join(libs, "\n"))
		if err := os.WriteFile(list, data, 0o644); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	return strings.Fields(string(data)), nil
}

// unpacked returns the folder with the package's files, fetching it if it is not in the store.
func (s store) unpacked(ctx context.Context, name string) (string, error) {
	return filepath.Join(s.dir, name), s.ensure(ctx, []string{name})
}

// ensure fetches and unpacks those of the packages that are not in the store.
func (s store) ensure(ctx context.Context, names []string) error {
	var missing []string
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(s.dir, name)); err != nil && !slices.Contains(missing, name) {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if s.dir == "" {
		return fmt.Errorf("packages %s: a cache folder is needed", strings.Join(missing, ", "))
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return err
	}
	temp, err := os.MkdirTemp(s.dir, ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	if err := fetch(ctx, temp, missing); err != nil {
		return fmt.Errorf("packages %s: %w", strings.Join(missing, ", "), err)
	}
	for _, name := range missing {
		if err := s.unpack(ctx, temp, name); err != nil {
			return fmt.Errorf("package %s: %w", name, err)
		}
	}
	return nil
}

func (s store) unpack(ctx context.Context, temp, name string) error {
	debs, err := filepath.Glob(filepath.Join(temp, name+"_*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get left %d files, one expected", len(debs))
	}
	files := filepath.Join(temp, name)
	if _, err := run(ctx, temp, "dpkg-deb", "-x", debs[0], files); err != nil {
		return err
	}
	// Renamed when whole; somebody else's copy is as good as ours.
	err = os.Rename(files, filepath.Join(s.dir, name))
	if errors.Is(err, os.ErrExist) || errors.Is(err, syscall.ENOTEMPTY) {
		return nil
	}
	return err
}

// fetch downloads packages into dir; if apt does not know one, its lists are refreshed once.
func fetch(ctx context.Context, dir string, names []string) error {
	get := func() error {
		_, err := run(ctx, dir, "apt-get", append([]string{"-q", "-o", "APT::Sandbox::User=root", "download"}, names...)...)
		return err
	}
	err := get()
	if err == nil {
		return nil
	}
	if _, update := run(ctx, dir, "apt-get", "-q", "update"); update != nil {
		return errors.Join(err, update)
	}
	return get()
}

func run(ctx context.Context, dir, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, bytes.TrimSpace(problem.Bytes()))
	}
	return out, nil
}
