package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"

	"worknode/kube"
)

func (s *session) ps() *cobra.Command {
	var namespace string
	c := &cobra.Command{
		Use: "ps", Short: "List the pods of the node", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, _, err := s.api()
			if err != nil {
				return err
			}
			var pods v1.PodList
			if err := client.List(c.Context(), kube.Pods, kube.Where{Namespace: namespace}, &pods); err != nil {
				return explain(err, "list pods")
			}
			if s.output == "json" {
				return s.json(pods.Items)
			}
			slices.SortFunc(pods.Items, func(a, b v1.Pod) int {
				return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
			})
			rows := [][]string{{"NAMESPACE", "NAME", "READY", "RESTARTS", "AGE", "IP", "STATUS"}}
			for _, p := range pods.Items {
				rows = append(rows, s.podRow(&p))
			}
			return s.table(rows)
		},
	}
	c.Flags().StringVarP(&namespace, "namespace", "n", "", "only this namespace")
	s.outputFlag(c)
	return c
}

func (s *session) podRow(p *v1.Pod) []string {
	ready, restarts := 0, int32(0)
	for _, st := range p.Status.ContainerStatuses {
		restarts += st.RestartCount
		if st.Ready {
			ready++
		}
	}
	status := podStatus(p)
	colour := yellow
	switch {
	case status == "Running" && ready == len(p.Spec.Containers), status == "Completed":
		colour = green
	case strings.Contains(status, "Err") || strings.Contains(status, "BackOff") || status == "OOMKilled" || status == "Failed":
		colour = red
	}
	// The coloured column is the last: tabwriter counts escape codes as text, which only there harms no alignment.
	return []string{p.Namespace, p.Name, fmt.Sprintf("%d/%d", ready, len(p.Spec.Containers)), strconv.Itoa(int(restarts)),
		age(s.now().Sub(p.CreationTimestamp.Time)), orDash(p.Status.PodIP), s.paint(colour, status)}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// podStatus is the one word that says best what a pod is doing.
func podStatus(p *v1.Pod) string {
	if p.DeletionTimestamp != nil {
		return "Terminating"
	}
	if p.Status.Reason != "" {
		return p.Status.Reason
	}
	for i, st := range p.Status.InitContainerStatuses {
		switch {
		case st.State.Terminated != nil && st.State.Terminated.ExitCode == 0:
			continue
		case st.State.Terminated != nil:
			return "Init:" + st.State.Terminated.Reason
		case st.State.Waiting != nil && st.State.Waiting.Reason != "PodInitializing":
			return "Init:" + st.State.Waiting.Reason
		case st.Started != nil && *st.Started && st.State.Running != nil && i < len(p.Spec.InitContainers) && p.Spec.InitContainers[i].RestartPolicy != nil:
			continue
		}
		return fmt.Sprintf("Init:%d/%d", i, len(p.Spec.InitContainers))
	}
	for _, st := range p.Status.ContainerStatuses {
		switch {
		case st.State.Waiting != nil && st.State.Waiting.Reason != "":
			return st.State.Waiting.Reason
		case st.State.Terminated != nil && st.State.Terminated.Reason != "" && p.Status.Phase != v1.PodSucceeded:
			return st.State.Terminated.Reason
		}
	}
	if p.Status.Phase == v1.PodSucceeded {
		return "Completed"
	}
	return string(p.Status.Phase)
}
