package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"worknode/fault"
)

// What a layer's files held when they were written is kept beside the layer: one line for each file with the CRC-32C of
// its content, its size and its name. The layer's own digest cannot be computed again from the files. The sums find what
// disks and people damage; they are no proof against an attacker, who is root here anyway.

var castagnoli = crc32.MakeTable(crc32.Castagnoli) // the one that processors compute

// sums writes a layer's list. A nil *sums writes nothing.
type sums struct {
	f   *os.File
	w   *bufio.Writer
	crc uint32
}

func newSums(path string) (*sums, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return &sums{f: f, w: bufio.NewWriterSize(f, 16<<10)}, nil
}

func (s *sums) begin() {
	if s != nil {
		s.crc = 0
	}
}

func (s *sums) add(p []byte) {
	if s != nil {
		s.crc = crc32.Update(s.crc, castagnoli, p)
	}
}

func (s *sums) end(name string, size int64) {
	if s != nil {
		fmt.Fprintf(s.w, "%08x %d %q\n", s.crc, size, name) // errors stay in w until close
	}
}

// gone says that a later entry took a name away, with all below it.
func (s *sums) gone(name string) {
	if s != nil {
		fmt.Fprintf(s.w, "- 0 %q\n", name)
	}
}

func (s *sums) close() error {
	if s == nil {
		return nil
	}
	err := s.w.Flush()
	if err1 := s.f.Close(); err == nil {
		err = err1
	}
	return err
}

type sum struct {
	crc  uint32
	size int64
}

// readSums returns what the files of a layer should hold.
func readSums(path string) (map[string]sum, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := map[string]sum{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 64<<10)
	for n := 1; lines.Scan(); n++ {
		name, s, gone, err := parseSum(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, n, err)
		}
		if !gone {
			out[name] = s
			continue
		}
		delete(out, name)
		maps.DeleteFunc(out, func(k string, _ sum) bool { return strings.HasPrefix(k, name+"/") })
	}
	return out, lines.Err()
}

func parseSum(line string) (name string, s sum, gone bool, err error) {
	crc, rest, _ := strings.Cut(line, " ")
	size, quoted, _ := strings.Cut(rest, " ")
	if name, err = strconv.Unquote(quoted); err != nil {
		return "", s, false, fmt.Errorf("the name: %w", err)
	}
	if crc == "-" {
		return name, s, true, nil
	}
	v, err := strconv.ParseUint(crc, 16, 32)
	if err != nil {
		return "", s, false, fmt.Errorf("the checksum: %w", err)
	}
	s.crc = uint32(v)
	s.size, err = strconv.ParseInt(size, 10, 64)
	return name, s, false, err
}

// Damage is one file of a layer that is not as it was written.
type Damage struct {
	Layer  string   `json:"layer"`  // its folder
	Digest string   `json:"digest"` // its diff id
	Images []string `json:"images"` // ids of the images made of it
	File   string   `json:"file,omitempty"`
	What   string   `json:"what"`
}

// maxDamage bounds what is told of one layer.
const maxDamage = 20

// Verify reads all files of the images that refs name, of all images without a name, and compares them with what was
// written. A damaged layer is marked: the next pull or import of its image brings it anew, while containers go on with
// what they have. Errors: NotFound. Repeat: safe.
func (s *Store) Verify(ctx context.Context, refs []string) ([]Damage, error) {
	images := s.List()
	if len(refs) > 0 {
		images = nil
		for _, ref := range refs {
			im, ok := s.Get(ref)
			if !ok {
				return nil, fault.New(fault.NotFound, "verify image %s: it is not in the store", ref)
			}
			images = append(images, im)
		}
	}
	of := map[string][]string{}
	for _, im := range images {
		for _, name := range im.Layers {
			of[name] = append(of[name], im.ID)
		}
	}
	names := s.hold(slices.Sorted(maps.Keys(of)))
	defer s.unhold(names)
	var out []Damage
	for _, name := range names {
		found, err := s.verifyLayer(ctx, name)
		if err != nil {
			return out, err
		}
		s.mu.Lock()
		l := s.t.Layers[name]
		for _, d := range found {
			d.Layer, d.Digest, d.Images = name, l.Diff.String(), of[name]
			out = append(out, d)
			slog.Error("image layer is damaged", "layer", name, "file", d.File, "what", d.What, "images", d.Images)
		}
		l.Damaged = len(found) > 0
		s.mu.Unlock()
	}
	return out, s.save()
}

// hold keeps those of the layers that are there on disk until unhold.
func (s *Store) hold(names []string) (held []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range names {
		if s.t.Layers[n] != nil {
			s.held[n]++
			held = append(held, n)
		}
	}
	return held
}

func (s *Store) verifyLayer(ctx context.Context, name string) ([]Damage, error) {
	want, err := readSums(filepath.Join(s.sums(), name))
	if errors.Is(err, os.ErrNotExist) {
		return []Damage{{What: "nothing is known about its files: an older build wrote it; pull the image again"}}, nil
	}
	if err != nil {
		return []Damage{{What: "its checksums cannot be read: " + err.Error()}}, nil
	}
	root, err := unix.Open(filepath.Join(s.Base(), name), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return []Damage{{What: "its folder: " + err.Error()}}, nil
	}
	defer unix.Close(root)
	var out []Damage
	buf := make([]byte, piece)
	for _, file := range slices.Sorted(maps.Keys(want)) {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if what := verifyFile(root, file, want[file], buf); what != "" {
			out = append(out, Damage{File: file, What: what})
			if len(out) == maxDamage {
				return append(out, Damage{What: "and perhaps more, nobody looked any further"}), nil
			}
		}
	}
	return out, nil
}

// verifyFile says what is wrong with a file; nothing if it is as it was.
func verifyFile(root int, name string, want sum, buf []byte) string {
	how := &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(root, name, how)
	if err != nil {
		return "it cannot be opened: " + err.Error()
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "it cannot be read: " + err.Error()
	}
	if !st.Mode().IsRegular() {
		return "it is no file any more"
	}
	if st.Size() != want.size {
		return fmt.Sprintf("it has %d bytes, it had %d", st.Size(), want.size)
	}
	crc := uint32(0)
	for {
		n, err := f.Read(buf)
		crc = crc32.Update(crc, castagnoli, buf[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			return "it cannot be read: " + err.Error()
		}
	}
	if crc != want.crc {
		return "its content changed"
	}
	return ""
}

// whole says that no layer of an image is known to be damaged. The caller holds mu.
func (s *Store) whole(layers []string) bool {
	return !slices.ContainsFunc(layers, func(n string) bool { return s.t.Layers[n] != nil && s.t.Layers[n].Damaged })
}
