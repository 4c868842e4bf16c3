package cli

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
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
					Param("previous", strconv.FormatBool(previous)).Param("timestamps", strconv.FormatBool(timestamps))
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
			if len(names) == 1 {
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

// together prints several logs at once, whole lines, each with its container's name before it.
func (s *session) together(names []string, one func(string, io.Writer) error) error {
	var mu sync.Mutex
	var wg sync.WaitGroup
	errs := make([]error, len(names))
	for i, name := range names {
		wg.Go(func() {
			w := &prefixed{mu: &mu, to: s.out, prefix: []byte(s.paint(faint, name+" | "))}
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

type prefixed struct {
	mu     *sync.Mutex // guards to, which several share
	to     io.Writer
	prefix []byte
	rest   []byte // a line that has not ended yet
}

func (p *prefixed) Write(data []byte) (int, error) {
	p.rest = append(p.rest, data...)
	for {
		end := bytes.IndexByte(p.rest, '\n')
		if end < 0 {
			return len(data), nil
		}
		p.mu.Lock()
		_, err := fmt.Fprintf(p.to, "%s%s", p.prefix, p.rest[:end+1])
		p.mu.Unlock()
		if err != nil {
			return 0, err
		}
		p.rest = p.rest[end+1:]
	}
}

func (p *prefixed) flush() {
	if len(p.rest) > 0 {
		p.mu.Lock()
		defer p.mu.Unlock()
		fmt.Fprintf(p.to, "%s%s\n", p.prefix, p.rest)
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
