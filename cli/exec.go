package cli

import (
	"bytes"
	"context"
	"errors"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"

	"worknode/kube"
)

func (s *session) exec() *cobra.Command {
	var container string
	var stdin, tty bool
	c := &cobra.Command{
		Use: "exec POD -- COMMAND [ARG...]", Short: "Run a command inside a container",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) < 2 {
				return fail(Usage, "exec wants POD -- COMMAND (for example: worknode exec -it web-1 -- sh)")
			}
			return nil
		},
		ValidArgsFunction: s.completePods,
		RunE: func(c *cobra.Command, args []string) error {
			client, cfg, err := s.api()
			if err != nil {
				return err
			}
			var pod v1.Pod
			if err := client.Get(c.Context(), kube.Pods, s.namespace, args[0], &pod); err != nil {
				return explain(err, "pod "+s.namespace+"/"+args[0])
			}
			names, err := choose(&pod, container)
			if err != nil {
				return err
			}
			return s.run(c.Context(), client, cfg, &pod, &v1.PodExecOptions{
				Container: names[0], Command: args[1:], Stdin: stdin, Stdout: true, Stderr: !tty, TTY: tty && s.output == "",
			})
		},
	}
	f := c.Flags()
	f.BoolVarP(&stdin, "stdin", "i", false, "pass this terminal's input on")
	f.BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	f.StringVarP(&container, "container", "c", "", "the container (default: the pod's first)")
	s.namespaceFlag(c)
	s.outputFlag(c)
	return c
}

func (s *session) run(ctx context.Context, client *kube.Client, cfg *rest.Config, pod *v1.Pod, options *v1.PodExecOptions) error {
	if options.TTY && !term.IsTerminal(int(os.Stdin.Fd())) {
		return fail(Usage, "-t wants a terminal as standard input (leave -t away)")
	}
	req := client.REST(kube.Pods).Get().Namespace(pod.Namespace).Resource("pods").Name(pod.Name).SubResource("exec")
	req = req.Param("container", options.Container)
	for name, on := range map[string]bool{"stdin": options.Stdin, "stdout": options.Stdout, "stderr": options.Stderr, "tty": options.TTY} {
		if on {
			req = req.Param(name, "true")
		}
	}
	for _, arg := range options.Command {
		req = req.Param("command", arg)
	}
	executor, err := executorFor(cfg, req.URL())
	if err != nil {
		return err
	}
	var stdout, stderr bytes.Buffer
	streams := remotecommand.StreamOptions{Stdout: s.out, Tty: options.TTY}
	if options.Stdin {
		streams.Stdin = os.Stdin
	}
	if options.Stderr {
		streams.Stderr = s.errs
	}
	if s.output == "json" {
		streams.Stdout, streams.Stderr = &stdout, &stderr
	}
	if options.TTY {
		restore, err := term.MakeRaw(int(os.Stdin.Fd()))
		if err != nil {
			return err
		}
		defer func() { _ = term.Restore(int(os.Stdin.Fd()), restore) }()
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		streams.TerminalSizeQueue = watchSize(ctx)
	}
	err = executor.StreamWithContext(ctx, streams)
	var ended exec.CodeExitError
	if s.output == "json" && (err == nil || errors.As(err, &ended)) {
		if err := s.json(outcome{ended.Code, stdout.String(), stderr.String()}); err != nil {
			return err
		}
	}
	if errors.As(err, &ended) {
		return &coded{Code(ended.Code), err}
	}
	return explain(err, "exec in "+pod.Namespace+"/"+pod.Name)
}

// outcome is the JSON form of `worknode exec`.
type outcome struct {
	ExitCode int    `json:"exitCode"`
	Stdout   string `json:"stdout"`
	Stderr   string `json:"stderr"`
}

// executorFor speaks WebSocket, and SPDY to a server that does not. Source: KEP-4006.
func executorFor(cfg *rest.Config, target *url.URL) (remotecommand.Executor, error) {
	spdy, err := remotecommand.NewSPDYExecutor(cfg, "POST", target)
	if err != nil {
		return nil, err
	}
	socket, err := remotecommand.NewWebSocketExecutor(cfg, "GET", target.String())
	if err != nil {
		return nil, err
	}
	return remotecommand.NewFallbackExecutor(socket, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
}

// sizes delivers the terminal's size, first as it is and then whenever it changes.
type sizes chan remotecommand.TerminalSize

func (q sizes) Next() *remotecommand.TerminalSize {
	size, ok := <-q
	if !ok {
		return nil
	}
	return &size
}

func watchSize(ctx context.Context) sizes {
	q := make(sizes, 1)
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	go func() { // ends with ctx
		defer close(q)
		defer signal.Stop(changed)
		for {
			if w, h, err := term.GetSize(int(os.Stdin.Fd())); err == nil {
				select {
				case q <- remotecommand.TerminalSize{Width: uint16(w), Height: uint16(h)}:
				case <-ctx.Done():
					return
				}
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return q
}
