package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"

	"worknode/kube"
)

// report is the JSON form of `worknode status`.
type report struct {
	Node       string             `json:"node"`
	Ready      bool               `json:"ready"`
	Address    string             `json:"address,omitempty"`
	Version    string             `json:"version"`
	Runtime    string             `json:"runtime"`
	Conditions []v1.NodeCondition `json:"conditions"`
	Capacity   v1.ResourceList    `json:"capacity"`
	Pods       int                `json:"pods"`
	PodsReady  int                `json:"podsReady"`
	Services   int                `json:"services"`
	Kubeconfig string             `json:"kubeconfig"`
}

func (s *session) status() *cobra.Command {
	c := &cobra.Command{
		Use: "status", Short: "Show how the node is, on one screen; exit code 4 if it is not ready", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := s.report(c)
			if err != nil {
				return err
			}
			if s.output == "json" {
				err = s.json(r)
			} else {
				err = s.print(r)
			}
			if err == nil && !r.Ready {
				err = fail(NotReady, "node %s is not ready", r.Node)
			}
			return err
		},
	}
	s.outputFlag(c)
	return c
}

func (s *session) report(c *cobra.Command) (*report, error) {
	client, _, err := s.api()
	if err != nil {
		return nil, err
	}
	var nodes v1.NodeList
	var pods v1.PodList
	var services v1.ServiceList
	if err := client.List(c.Context(), kube.Nodes, kube.Where{}, &nodes); err != nil {
		return nil, explain(err, "list nodes")
	}
	if len(nodes.Items) == 0 {
		return nil, fail(NotReady, "the kubelet has not registered its node yet (see `worknode events` and the kubelet's log)")
	}
	if err := client.List(c.Context(), kube.Pods, kube.Where{}, &pods); err != nil {
		return nil, explain(err, "list pods")
	}
	if err := client.List(c.Context(), kube.Services, kube.Where{}, &services); err != nil {
		return nil, explain(err, "list services")
	}
	at, err := s.place()
	if err != nil {
		return nil, err
	}
	n := &nodes.Items[0]
	r := &report{
		Node: n.Name, Version: n.Status.NodeInfo.KubeletVersion, Runtime: n.Status.NodeInfo.ContainerRuntimeVersion,
		Conditions: n.Status.Conditions, Capacity: n.Status.Capacity,
		Pods: len(pods.Items), Services: len(services.Items), Kubeconfig: at.Kubeconfig(),
	}
	for _, a := range n.Status.Addresses {
		if a.Type == v1.NodeInternalIP {
			r.Address = a.Address
		}
	}
	for _, cond := range n.Status.Conditions {
		if cond.Type == v1.NodeReady {
			r.Ready = cond.Status == v1.ConditionTrue
		}
	}
	for _, p := range pods.Items {
		for _, cond := range p.Status.Conditions {
			if cond.Type == v1.PodReady && cond.Status == v1.ConditionTrue {
				r.PodsReady++
			}
		}
	}
	return r, nil
}

func (s *session) print(r *report) error {
	ready := s.paint(green, "ready")
	if !r.Ready {
		ready = s.paint(red, "not ready")
	}
	fmt.Fprintf(s.out, "Node      %s (%s) is %s\n", r.Node, r.Address, ready)
	fmt.Fprintf(s.out, "Version   %s, %s\n", r.Version, r.Runtime)
	fmt.Fprintf(s.out, "Capacity  %s CPU, %s memory, %s pods\n", r.Capacity.Cpu(), r.Capacity.Memory(), r.Capacity.Pods())
	fmt.Fprintf(s.out, "Pods      %d, %d of them ready\n", r.Pods, r.PodsReady)
	fmt.Fprintf(s.out, "Services  %d\n", r.Services)
	for _, c := range r.Conditions {
		pressure := c.Type != v1.NodeReady
		if good := (c.Status == v1.ConditionTrue) != pressure; !good {
			fmt.Fprintf(s.out, "%s\n", s.paint(yellow, strings.TrimSpace(fmt.Sprintf("%s=%s %s: %s", c.Type, c.Status, c.Reason, c.Message))))
		}
	}
	_, err := fmt.Fprintf(s.out, "API       export KUBECONFIG=%s\n", r.Kubeconfig)
	return err
}
