// Package cli holds the commands for users who have no kubectl at hand: what runs, what it says, a shell inside it.
// They talk to the node's API and runtime like any other client and know nothing of its insides.
//
// Data goes to stdout and everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found,
// 4 not ready, 5 the node does not answer; exec ends with the command's own code.
package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"worknode/fault"
	"worknode/kube"
	"worknode/standalone/place"
)

// Code is the exit code that an error asks for.
type Code int

const (
	Failed   Code = 1
	Usage    Code = 2
	NotFound Code = 3
	NotReady Code = 4
	NoNode   Code = 5
)

type coded struct {
	code Code
	err  error
}

func (e *coded) Error() string { return e.err.Error() }
func (e *coded) Unwrap() error { return e.err }

func fail(code Code, format string, args ...any) error {
	return &coded{code, fmt.Errorf(format, args...)}
}

// ExitCode is what the process should end with after err.
func ExitCode(err error) int {
	var c *coded
	switch {
	case err == nil:
		return 0
	case errors.As(err, &c):
		return int(c.code)
	case apierrors.IsNotFound(err), fault.Is(err, fault.NotFound):
		return int(NotFound)
	case unreachable(err):
		return int(NoNode)
	}
	return int(Failed)
}

func unreachable(err error) bool {
	var op *net.OpError
	return errors.Is(err, syscall.ECONNREFUSED) || (errors.As(err, &op) && op.Op == "dial")
}

// session is what all commands share: the flags, the streams and the way to the node.
type session struct {
	root      string
	socket    string // of the runtime's debug window; empty: where root says
	cri       string // of CRI; empty: where root says
	namespace string
	output    string
	out       io.Writer
	errs      io.Writer
	now       func() time.Time
}

// Commands returns the user's commands, to be added to the root command.
func Commands() []*cobra.Command {
	s := &session{out: os.Stdout, errs: os.Stderr, now: time.Now}
	all := []*cobra.Command{s.ps(), s.logs(), s.exec(), s.images(), s.events(), s.status(), s.check()}
	for _, c := range all {
		c.Flags().StringVar(&s.root, "root", os.Getenv("WORKNODE_ROOT"), "where the node lives, as given to `worknode run --root`")
		c.SilenceUsage = true
	}
	return all
}

func (s *session) outputFlag(c *cobra.Command) {
	c.Flags().StringVarP(&s.output, "output", "o", "", "json: the objects themselves, for programs")
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"json"}, cobra.ShellCompDirectiveNoFileComp))
	run := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		if s.output != "" && s.output != "json" {
			return fail(Usage, "-o %s: only json is known", s.output)
		}
		return run(c, args)
	}
}

func (s *session) namespaceFlag(c *cobra.Command) {
	c.Flags().StringVarP(&s.namespace, "namespace", "n", "default", "namespace of the pod")
}

func (s *session) place() (place.Node, error) { return place.At(s.root) }

// api opens the node's API with the administrator's certificate.
func (s *session) api() (*kube.Client, *rest.Config, error) {
	at, err := s.place()
	if err != nil {
		return nil, nil, err
	}
	file := at.Kubeconfig()
	if _, err := os.Stat(file); err != nil {
		return nil, nil, fail(NoNode, "no node here: %w (start one with `worknode run DIR`, or name its place with --root)", err)
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		return nil, nil, fmt.Errorf("kubeconfig %s: %w", file, err)
	}
	cfg.UserAgent = "worknode-cli"
	client, err := kube.For(cfg)
	return client, cfg, err
}

// explain adds what to do to an error of the API or the runtime.
func explain(err error, doing string) error {
	switch {
	case err == nil:
		return nil
	case unreachable(err):
		return fail(NoNode, "%s: %w (is `worknode run` running?)", doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

func (s *session) json(v any) error {
	enc := json.NewEncoder(s.out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// table prints rows in columns; the first row is the header.
func (s *session) table(rows [][]string) error {
	w := tabwriter.NewWriter(s.out, 0, 8, 3, ' ', 0)
	for _, row := range rows {
		if _, err := fmt.Fprintln(w, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return w.Flush()
}

// colours says whether output may be coloured: only on a terminal, and not if the user said no.
// Source: no-color.org, bixense.com/clicolors.
func colours(w io.Writer) bool {
	if os.Getenv("CLICOLOR_FORCE") != "" && os.Getenv("CLICOLOR_FORCE") != "0" {
		return true
	}
	f, ok := w.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
}

const (
	green  = "32"
	yellow = "33"
	red    = "31"
	faint  = "2"
)

func (s *session) paint(colour, text string) string {
	if !colours(s.out) {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// age prints a duration as kubectl does: two units at most, for people.
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
