package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"

	"worknode/kube"
)

func (s *session) logs() *cobra.Command {
	var follow, previous, timestamps bool
	var container string
	var tail int64
	c := &cobra.Command{
		Use: "logs POD", Short: "Print what a pod's containers wrote", Args: exactly(1, "POD"),
		ValidArgsFunction: s.completePods,
		RunE: func(c *cobra.Command, args []string) error {
			client, _, err := s.api()
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
			one := func(name string, w io.Writer) error {
				req := client.REST(kube.Pods).Get().Namespace(s.namespace).Resource("pods").Name(pod.Name).SubResource("log").
					Param("container", name).Param("follow", strconv.FormatBool(follow)).
					Param("previous", strconv.FormatBool(previous)).Param("timestamps", strconv.FormatBool(timestamps || s.output == "json"))
				if tail >= 0 {
					req = req.Param("tailLines", strconv.FormatInt(tail, 10))
				}
				stream, err := req.Stream(c.Context())
				if err != nil {
					return explain(err, "logs of container "+name)
				}
				defer stream.Close()
				_, err = io.Copy(w, stream)
				return err
			}
			if len(names) == 1 && s.output == "" {
				return one(names[0], s.out)
			}
			return s.together(names, one)
		},
	}
	f := c.Flags()
	f.BoolVarP(&follow, "follow", "f", false, "go on as long as the container runs")
	f.BoolVarP(&previous, "previous", "p", false, "the container's run before its last restart")
	f.BoolVar(&timestamps, "timestamps", false, "when each line was written")
	f.StringVarP(&container, "container", "c", "", "only this container")
	f.Int64Var(&tail, "tail", -1, "only the last so many lines")
	s.namespaceFlag(c)
	s.outputFlag(c)
	return c
}

// choose returns the containers that a command means: the one named, else all of the pod's own.
func choose(pod *v1.Pod, name string) ([]string, error) {
	var names []string
	for _, c := range pod.Spec.Containers {
		names = append(names, c.Name)
	}
	if name == "" {
		return names, nil
	}
	for _, c := range pod.Spec.InitContainers {
		names = append(names, c.Name)
	}
	for _, n := range names {
		if n == name {
			return []string{name}, nil
		}
	}
	return nil, fail(NotFound, "pod %s/%s has no container %q (it has %v)", pod.Namespace, pod.Name, name, names)
}

// record is one line of a log in the JSON form of `worknode logs`.
type record struct {
	Time      string `json:"time"`
	Container string `json:"container"`
	Text      string `json:"text"`
}

// together prints several logs at once, whole lines, each with its container's name before it, or as JSON records.
func (s *session) together(names []string, one func(string, io.Writer) error) error {
	var mu sync.Mutex
	var wg sync.WaitGroup
	errs := make([]error, len(names))
	for i, name := range names {
		wg.Go(func() {
			w := &lines{mu: &mu, print: func(line []byte) error {
				_, err := fmt.Fprintf(s.out, "%s%s\n", s.paint(faint, name+" | "), line)
				return err
			}}
			if s.output == "json" {
				w.print = func(line []byte) error {
					at, text, _ := strings.Cut(string(line), " ")
					return json.NewEncoder(s.out).Encode(record{at, name, text})
				}
			}
			errs[i] = one(name, w)
			w.flush()
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// lines cuts what is written to it into lines and prints each whole.
type lines struct {
	mu    *sync.Mutex // held while printing: several logs share one output
	print func(line []byte) error
	rest  []byte // a line that has not ended yet
}

func (l *lines) Write(data []byte) (int, error) {
	l.rest = append(l.rest, data...)
	for {
		end := bytes.IndexByte(l.rest, '\n')
		if end < 0 {
			return len(data), nil
		}
		if err := l.one(l.rest[:end]); err != nil {
			return 0, err
		}
		l.rest = l.rest[end+1:]
	}
}

func (l *lines) one(line []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.print(line)
}

func (l *lines) flush() {
	if len(l.rest) > 0 {
		_ = l.one(l.rest) // the log has ended, there is nobody to tell
	}
}

// exactly wants n arguments and says which, with the exit code for wrong usage.
func exactly(n int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != n {
			return fail(Usage, "%s wants %s (see worknode %s --help)", c.Name(), what, c.Name())
		}
		return nil
	}
}

func (s *session) completePods(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	client, _, err := s.api()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var pods v1.PodList
	if err := client.List(c.Context(), kube.Pods, kube.Where{Namespace: s.namespace}, &pods); err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, p := range pods.Items {
		names = append(names, p.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
