package cli

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (s *session) images() *cobra.Command {
	c := &cobra.Command{
		Use: "images", Short: "List, pull and keep the images on the node", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			images, done, err := s.imageService()
			if err != nil {
				return err
			}
			defer done()
			answer, err := images.ListImages(c.Context(), &cri.ListImagesRequest{})
			if err != nil {
				return fail(NoNode, "list images: %w", err)
			}
			if s.output == "json" {
				return s.json(answer.Images)
			}
			rows := [][]string{{"IMAGE", "ID", "SIZE"}}
			for _, image := range answer.Images {
				names := image.RepoTags
				if len(names) == 0 {
					names = []string{"<none>"}
				}
				for _, name := range names {
					rows = append(rows, []string{name, short(image.Id), bytesize(image.Size)})
				}
			}
			return s.table(rows)
		},
	}
	s.outputFlag(c)
	c.PersistentFlags().StringVar(&s.socket, "debug-socket", "", "the runtime's debug socket, where it is not where --root says")
	c.PersistentFlags().StringVar(&s.cri, "socket", "", "the runtime's CRI socket, where it is not where --root says")
	for _, sub := range []*cobra.Command{s.imagesPull(), s.imagesRemove(), s.imagesImport(), s.imagesExport(), s.imagesDisk(), s.imagesPrune(), s.imagesVerify()} {
		sub.SilenceUsage = true
		sub.Flags().StringVar(&s.root, "root", os.Getenv("WORKNODE_ROOT"), "where the node lives, as given to `worknode run --root`")
		c.AddCommand(sub)
	}
	return c
}

// imageService connects to the runtime's CRI socket; done ends the connection.
func (s *session) imageService() (service cri.ImageServiceClient, done func(), err error) {
	at, err := s.place()
	if err != nil {
		return nil, nil, err
	}
	socket := s.cri
	if socket == "" {
		socket = at.RuntimeSocket()
	}
	if _, err := os.Stat(socket); err != nil {
		return nil, nil, fail(NoNode, "no runtime here: %w (start a node with `worknode run DIR`, or name its place with --root)", err)
	}
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	return cri.NewImageServiceClient(conn), func() { conn.Close() }, nil
}

func (s *session) imagesRemove() *cobra.Command {
	return &cobra.Command{
		Use: "rm IMAGE...", Short: "Remove images with all their names; containers that run keep what they stand on", Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			images, done, err := s.imageService()
			if err != nil {
				return err
			}
			defer done()
			var missing []string
			for _, name := range args {
				spec := &cri.ImageSpec{Image: name}
				status, err := images.ImageStatus(c.Context(), &cri.ImageStatusRequest{Image: spec})
				if err != nil {
					return fail(NoNode, "image %s: %w", name, err)
				}
				if status.Image == nil {
					missing = append(missing, name)
					continue
				}
				if _, err := images.RemoveImage(c.Context(), &cri.RemoveImageRequest{Image: spec}); err != nil {
					return fmt.Errorf("remove image %s: %w", name, err)
				}
				fmt.Fprintln(s.out, name)
			}
			if len(missing) > 0 {
				return fail(NotFound, "not on this node: %s", strings.Join(missing, ", "))
			}
			return nil
		},
	}
}

// stored is an image as the runtime's store words it.
type stored struct {
	ID      string
	Tags    []string
	Digests []string
	Size    int64
}

func (i stored) name() string {
	if len(i.Tags) > 0 {
		return i.Tags[0]
	}
	return "<none>"
}

func (s *session) imagesImport() *cobra.Command {
	return &cobra.Command{
		Use: "import FILE...", Short: "Import images from tar files (docker save, OCI layout); - reads stdin", Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			runtime, err := s.control()
			if err != nil {
				return err
			}
			for _, name := range args {
				from := io.NopCloser(io.Reader(os.Stdin))
				if name != "-" {
					if from, err = os.Open(name); err != nil {
						return err
					}
				}
				var list []stored
				err = runtime.ask(c.Context(), http.MethodPost, "/images/import", url.Values{"name": {name}}, from, &list)
				from.Close()
				if err != nil {
					return err
				}
				for _, im := range list {
					fmt.Fprintf(s.out, "%s %s\n", im.ID, strings.Join(im.Tags, " "))
				}
			}
			return nil
		},
	}
}

func (s *session) imagesExport() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "export IMAGE...", Short: "Export images as one OCI layout in a tar",
		Long: `Writes images as one OCI layout in a tar, which worknode, skopeo, podman and others import.

The node keeps no layer as the registry sent it, so each is packed anew from its files: always the same bytes for the
same layer, but with a digest, and so an image id, of its own. Signatures and pins by digest of the registry's image do
not match the copy, and its history is gone.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) (err error) {
			if file == "" && term.IsTerminal(int(os.Stdout.Fd())) {
				return fail(Usage, "a tar is nothing for a terminal: name a file with -f, or send stdout somewhere")
			}
			runtime, err := s.control()
			if err != nil {
				return err
			}
			reply, err := runtime.do(c.Context(), http.MethodGet, "/images/export", url.Values{"ref": args}, nil)
			if err != nil {
				return err
			}
			defer reply.Body.Close()
			to := os.Stdout
			if file != "" {
				if to, err = os.CreateTemp(dirOf(file), ".worknode-export-"); err != nil {
					return err
				}
				defer func() {
					if err1 := to.Close(); err == nil {
						err = err1
					}
					if err == nil {
						err = os.Rename(to.Name(), file) // whole or not at all
					}
					if err != nil {
						os.Remove(to.Name())
					}
				}()
			}
			buffer := bufio.NewWriterSize(to, 256<<10)
			_, err = io.Copy(buffer, reply.Body)
			if err == nil {
				err = buffer.Flush()
			}
			if err != nil {
				return fmt.Errorf("export: %w", err)
			}
			if text := reply.Trailer.Get("Worknode-Error"); text != "" {
				return fmt.Errorf("export: %s", text)
			}
			for i, id := range strings.Fields(reply.Trailer.Get("Worknode-Ids")) {
				fmt.Fprintf(s.errs, "%s: exported with the id %s (packed anew, so not the registry's)\n", args[min(i, len(args)-1)], id)
			}
			return nil
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "write here, and only when all is well; stdout otherwise")
	return c
}

func dirOf(file string) string {
	if i := strings.LastIndexByte(file, '/'); i >= 0 {
		return file[:i+1]
	}
	return "."
}

func (s *session) imagesDisk() *cobra.Command {
	c := &cobra.Command{
		Use: "du", Short: "Say what images take on disk, and what their removal would free", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			runtime, err := s.control()
			if err != nil {
				return err
			}
			var list []struct {
				Image                         stored
				Layers, Users                 int
				Bytes, Unique, Inodes, Shared int64
			}
			if err := runtime.ask(c.Context(), http.MethodGet, "/images/disk", nil, nil, &list); err != nil {
				return err
			}
			if s.output == "json" {
				return s.json(list)
			}
			rows := [][]string{{"IMAGE", "ID", "LAYERS", "DISK", "ITS OWN", "FILES", "CONTAINERS"}}
			for _, d := range list {
				rows = append(rows, []string{d.Image.name(), short(d.Image.ID), fmt.Sprint(d.Layers), bytesize(uint64(d.Bytes)),
					bytesize(uint64(d.Unique)), fmt.Sprint(d.Inodes), fmt.Sprint(d.Users)})
			}
			return s.table(rows)
		},
	}
	s.outputFlag(c)
	return c
}

func (s *session) imagesPrune() *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "prune", Short: "Remove the images that no container uses and nobody pinned", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			runtime, err := s.control()
			if err != nil {
				return err
			}
			query := url.Values{}
			if dry {
				query.Set("dry", "1")
			}
			var list []stored
			if err := runtime.ask(c.Context(), http.MethodPost, "/images/prune", query, nil, &list); err != nil {
				return err
			}
			for _, im := range list {
				fmt.Fprintf(s.out, "%s %s\n", im.ID, strings.Join(im.Tags, " "))
			}
			return nil
		},
	}
	c.Flags().BoolVar(&dry, "dry-run", false, "name them only")
	return c
}

func (s *session) imagesVerify() *cobra.Command {
	c := &cobra.Command{
		Use: "verify [IMAGE...]", Short: "Read all files of images and say which are not as they were written",
		Long: `Reads the files of the images named, or of all, and compares them with the checksums taken when they were written.
A layer that is damaged is brought anew by the next pull or import of its image; containers go on with what they have.`,
		RunE: func(c *cobra.Command, args []string) error {
			runtime, err := s.control()
			if err != nil {
				return err
			}
			var list []struct {
				Layer, Digest, File, What string
				Images                    []string
			}
			if err := runtime.ask(c.Context(), http.MethodPost, "/images/verify", url.Values{"ref": args}, nil, &list); err != nil {
				return err
			}
			if s.output == "json" {
				if err := s.json(list); err != nil {
					return err
				}
			}
			for _, d := range list {
				if s.output == "" {
					fmt.Fprintf(s.out, "layer %s (%.19s): %s: %s\n", d.Layer, d.Digest, d.File, d.What)
				}
			}
			if len(list) > 0 {
				return fail(Failed, "%d faults (pull the images again)", len(list))
			}
			return nil
		},
	}
	s.outputFlag(c)
	return c
}

func short(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(12, len(id))]
}

func bytesize(n uint64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
}
