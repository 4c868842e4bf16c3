package api

import (
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"worknode/standalone/store"
)

// deleteNamespace marks a namespace, deletes all that it holds and removes it when nothing is left.
func (s *Server) deleteNamespace(old *store.Item, ns *corev1.Namespace, dry bool) (*store.Item, bool, error) {
	if slices.Contains(birthNamespaces, ns.Name) {
		return nil, false, apierrors.NewForbidden(store.Namespaces.GR(), ns.Name, fmt.Errorf("this namespace may not be deleted"))
	}
	if dry {
		return old, false, nil
	}
	if ns.DeletionTimestamp == nil {
		ns = ns.DeepCopy()
		now := metav1.NewTime(s.Now().Truncate(time.Second))
		ns.DeletionTimestamp = &now
		ns.Status.Phase = corev1.NamespaceTerminating
		item, err := s.Store.Put(store.Namespaces, ns, old)
		if err != nil {
			return nil, false, errRaced
		}
		old = item
	}
	s.emptyNamespace(ns.Name)
	s.emptied(ns.Name)
	return old, s.Store.Get(store.Namespaces, "", ns.Name) == nil, nil
}

// emptyNamespace deletes every object in a namespace, pods with their grace.
func (s *Server) emptyNamespace(name string) {
	for _, r := range store.All {
		if !r.Namespaced {
			continue
		}
		items, _ := s.Store.List(r, name)
		for _, item := range items {
			_, _, err := s.Delete(r, name, item.Object.GetName(), &metav1.DeleteOptions{})
			if err != nil && !apierrors.IsNotFound(err) {
				slog.Error("object keeps its namespace from ending", "namespace", name, "kind", r.Kind, "name", item.Object.GetName(), "err", err)
			}
		}
	}
}

// emptied removes a namespace that is being deleted once nothing is left in it. It is called whenever an object of it
// is gone.
func (s *Server) emptied(name string) {
	ns := s.Store.Get(store.Namespaces, "", name)
	if ns == nil || ns.Object.GetDeletionTimestamp() == nil || len(ns.Object.GetFinalizers()) > 0 {
		return
	}
	for _, r := range store.All {
		if !r.Namespaced {
			continue
		}
		items, _ := s.Store.List(r, name)
		if r == store.Events || r == store.EndpointSlices { // what others say about pods must not keep their namespace
			for _, item := range items {
				_, _ = s.Store.Delete(r, item, nil) // gone already is as good
			}
			continue
		}
		if len(items) > 0 {
			return
		}
	}
	// Somebody else may have removed it, or changed it and will come here again.
	_, _ = s.Store.Delete(store.Namespaces, ns, nil)
}

// resumeNamespaces goes on with deletions that the last process did not finish.
func (s *Server) resumeNamespaces() {
	items, _ := s.Store.List(store.Namespaces, "")
	for _, item := range items {
		if item.Object.GetDeletionTimestamp() != nil {
			s.emptyNamespace(item.Object.GetName())
			s.emptied(item.Object.GetName())
		}
	}
}
