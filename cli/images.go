package cli

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (s *session) images() *cobra.Command {
	c := &cobra.Command{
		Use: "images", Short: "List the images on the node", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			at, err := s.place()
			if err != nil {
				return err
			}
			socket := at.RuntimeSocket()
			if _, err := os.Stat(socket); err != nil {
				return fail(NoNode, "no runtime here: %w (start a node with `worknode run DIR`, or name its place with --root)", err)
			}
			conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				return err
			}
			defer conn.Close()
			answer, err := cri.NewImageServiceClient(conn).ListImages(c.Context(), &cri.ListImagesRequest{})
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
