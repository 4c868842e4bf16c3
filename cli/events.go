package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"

	"worknode/kube"
)

func (s *session) events() *cobra.Command {
	var namespace string
	c := &cobra.Command{
		Use: "events", Short: "List what happened on the node lately, oldest first", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, _, err := s.api()
			if err != nil {
				return err
			}
			var events v1.EventList
			if err := client.List(c.Context(), kube.Events, kube.Where{Namespace: namespace}, &events); err != nil {
				return explain(err, "list events")
			}
			slices.SortFunc(events.Items, func(a, b v1.Event) int { return lastSeen(&a).Compare(lastSeen(&b)) })
			if s.output == "json" {
				return s.json(events.Items)
			}
			rows := [][]string{{"AGE", "REASON", "OBJECT", "MESSAGE"}}
			for _, e := range events.Items {
				seen := age(s.now().Sub(lastSeen(&e)))
				if e.Count > 1 {
					seen += fmt.Sprintf(" (x%d)", e.Count)
				}
				message := strings.TrimSpace(e.Message)
				if e.Type == v1.EventTypeWarning {
					message = s.paint(yellow, message)
				}
				object := strings.ToLower(e.InvolvedObject.Kind) + "/" + e.InvolvedObject.Name
				rows = append(rows, []string{seen, e.Reason, object, message})
			}
			return s.table(rows)
		},
	}
	c.Flags().StringVarP(&namespace, "namespace", "n", "", "only this namespace")
	s.outputFlag(c)
	return c
}

func lastSeen(e *v1.Event) time.Time {
	switch {
	case !e.LastTimestamp.IsZero():
		return e.LastTimestamp.Time
	case !e.EventTime.IsZero():
		return e.EventTime.Time
	}
	return e.CreationTimestamp.Time
}
