package cli

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// layerLine is a layer of a pull as the runtime reports it.
type layerLine struct {
	Digest string
	Size   int64
	Done   int64
	State  string
}

func (s *session) imagesPull() *cobra.Command {
	var creds, authFile string
	c := &cobra.Command{
		Use: "pull IMAGE", Short: "Pull an image from its registry",
		Long: `Pulls an image as the kubelet would: mirrors and certificates come from hosts.toml, the signature policy from the
runtime's configuration. On a terminal a bar shows how far it is; elsewhere each layer that is done is a line.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			auth, err := authFor(args[0], creds, authFile)
			if err != nil {
				return err
			}
			runtime, err := s.control()
			if err != nil {
				return err
			}
			order, err := json.Marshal(map[string]any{"ref": args[0], "auth": auth})
			if err != nil {
				return err
			}
			reply, err := runtime.do(c.Context(), http.MethodPost, "/images/pull", nil, bytes.NewReader(order))
			if err != nil {
				return err
			}
			defer reply.Body.Close()
			return s.followPull(args[0], reply.Body)
		},
	}
	c.Flags().StringVar(&creds, "creds", "", "USER:PASSWORD for the registry; USER alone reads the password from stdin")
	c.Flags().StringVar(&authFile, "authfile", "", "take the log-in from a file such as ~/.docker/config.json")
	return c
}

// followPull shows a pull until it ends.
func (s *session) followPull(ref string, from io.Reader) error {
	show := &pullView{out: s.errs, begin: s.now(), now: s.now, told: map[string]bool{}}
	if f, ok := s.errs.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		show.width = 80
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			show.width = w
		}
	}
	lines := json.NewDecoder(from)
	for {
		var line struct {
			trouble
			Layers []layerLine
			Image  *stored
		}
		if err := lines.Decode(&line); err != nil {
			show.end()
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fail(NoNode, "pull image %s: the runtime left: %w", ref, err)
		}
		show.show(line.Layers)
		switch {
		case line.Error != "":
			show.end()
			return line.trouble.err()
		case line.Image != nil:
			show.end()
			fmt.Fprintln(s.out, line.Image.ID)
			return nil
		}
	}
}

// pullView draws a bar, or writes a line per layer if width is zero.
type pullView struct {
	out   io.Writer
	width int // columns of the terminal
	begin time.Time
	now   func() time.Time
	told  map[string]bool
	drawn bool
}

func (v *pullView) show(layers []layerLine) {
	if v.width > 0 {
		if len(layers) > 0 {
			fmt.Fprintf(v.out, "\r\x1b[K%s", bar(layers, v.now().Sub(v.begin), v.width-1))
			v.drawn = true
		}
		return
	}
	for _, l := range layers {
		if over(l) && !v.told[l.Digest] {
			v.told[l.Digest] = true
			word := "unpacked"
			if l.State == "here" {
				word = "was here"
			}
			fmt.Fprintf(v.out, "layer %s %s (%s)\n", short(l.Digest), word, bytesize(uint64(l.Size)))
		}
	}
}

func over(l layerLine) bool { return l.State == "unpacked" || l.State == "here" }

func (v *pullView) end() {
	if v.drawn {
		fmt.Fprintln(v.out)
	}
}

// bar is one line: how much of the bytes came, how fast, and how many layers are done.
func bar(layers []layerLine, took time.Duration, width int) string {
	var size, done, came int64
	ready := 0
	for _, l := range layers {
		size += l.Size
		if over(l) {
			ready++
			done += l.Size
		} else {
			done += min(l.Done, l.Size)
		}
		came += l.Done
	}
	share := 1.0
	if size > 0 {
		share = float64(done) / float64(size)
	}
	text := fmt.Sprintf(" %3.0f %%  %s of %s  layers %d/%d", 100*share, bytesize(uint64(done)), bytesize(uint64(size)), ready, len(layers))
	if s := took.Seconds(); s >= 1 && came > 0 {
		text += fmt.Sprintf("  %s/s", bytesize(uint64(float64(came)/s)))
	}
	room := width - len(text) - 2
	if room < 10 {
		return text[1:min(len(text), max(width, 1)+1)]
	}
	room = min(room, 50)
	full := int(share * float64(room))
	return "[" + strings.Repeat("=", full) + strings.Repeat(" ", room-full) + "]" + text
}

// authFor finds the log-in to show to the registry; nil without one.
func authFor(ref, creds, file string) (*cri.AuthConfig, error) {
	switch {
	case creds != "" && file != "":
		return nil, fail(Usage, "--creds and --authfile both say who you are: choose one")
	case creds != "":
		user, password, ok := strings.Cut(creds, ":")
		if !ok {
			data, err := io.ReadAll(io.LimitReader(os.Stdin, 64<<10))
			if err != nil {
				return nil, fmt.Errorf("password from stdin: %w", err)
			}
			password = strings.TrimRight(string(data), "\r\n")
		}
		return &cri.AuthConfig{Username: user, Password: password}, nil
	case file != "":
		return authFromFile(ref, file)
	}
	return nil, nil
}

// authFromFile reads a file in Docker's format. Helpers, which are programs, are not run.
// Source: Docker CLI docs, "docker login", "config.json".
func authFromFile(ref, file string) (*cri.AuthConfig, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var config struct {
		Auths map[string]struct {
			Auth, Username, Password, IdentityToken, RegistryToken string
		}
	}
	if err := json.Unmarshal(data, &config); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	registry := "docker.io"
	if first, _, found := strings.Cut(ref, "/"); found && (strings.ContainsAny(first, ".:") || first == "localhost") {
		registry = first
	}
	for server, a := range config.Auths {
		host := strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://")
		host, _, _ = strings.Cut(host, "/")
		if host == "index.docker.io" || host == "registry-1.docker.io" {
			host = "docker.io"
		}
		if host != registry {
			continue
		}
		if a.Auth != "" {
			if _, err := base64.StdEncoding.DecodeString(a.Auth); err != nil {
				return nil, fmt.Errorf("%s: field auths.%s.auth: %w", file, server, err)
			}
		}
		return &cri.AuthConfig{Auth: a.Auth, Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}, nil
	}
	return nil, fail(NotFound, "%s: field auths has nothing for %s", file, registry)
}
