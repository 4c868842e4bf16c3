package api

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"worknode/standalone/store"
)

func (s *Server) delete(w http.ResponseWriter, r *request) error {
	o, err := deleteOptions(r)
	if err != nil {
		return err
	}
	item, gone, err := s.Delete(r.resource, r.namespace, r.name, o)
	if err != nil {
		return err
	}
	if !gone || r.resource == store.Pods || r.resource == store.Services || r.resource == store.ServiceAccounts {
		return s.writeItem(w, r, http.StatusOK, item)
	}
	status := &metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess,
		Details: &metav1.StatusDetails{Name: r.name, Group: r.resource.Group, Kind: r.resource.Name, UID: item.Object.GetUID()},
	}
	writeMeta(w, r.Request, http.StatusOK, status, "v1", "Status")
	return nil
}

// deleteOptions reads the options from the body, or from the query if there is no body.
func deleteOptions(r *request) (*metav1.DeleteOptions, error) {
	body, err := readBody(r.Request)
	if err != nil {
		return nil, err
	}
	o := &metav1.DeleteOptions{}
	if len(body) > 0 {
		kind, err := contentType(r.Request)
		if err != nil {
			return nil, err
		}
		// Clients send v1 or the resource's own group.
		if _, err := decode(kind, body, "", "DeleteOptions", o, ignore); err != nil {
			return nil, err
		}
	} else {
		q := r.query
		if text := q.Get("gracePeriodSeconds"); text != "" {
			grace, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return nil, apierrors.NewBadRequest(fmt.Sprintf("gracePeriodSeconds: %v", err))
			}
			o.GracePeriodSeconds = &grace
		}
		if text := q.Get("propagationPolicy"); text != "" {
			policy := metav1.DeletionPropagation(text)
			o.PropagationPolicy = &policy
		}
		o.DryRun = q["dryRun"]
	}
	if len(o.DryRun) > 0 && !slices.Equal(o.DryRun, []string{metav1.DryRunAll}) {
		return nil, apierrors.NewBadRequest("dryRun: Unsupported value: supported values: \"All\"")
	}
	return o, nil
}

// Delete asks for an object's end. A pod first gets its grace: it is marked, and gone only when the kubelet deletes it
// with grace zero. Finalizers are waited for. gone says that the object is out of the store.
// Errors: those of the API.
func (s *Server) Delete(r *store.Resource, namespace, name string, o *metav1.DeleteOptions) (item *store.Item, gone bool, err error) {
	for range updateTries {
		old, err := s.find(r, namespace, name)
		if err != nil {
			return nil, false, err
		}
		if err := checkPreconditions(r, old, o.Preconditions); err != nil {
			return nil, false, err
		}
		item, gone, err = s.deleteOnce(r, old, o)
		if !errors.Is(err, errRaced) {
			return item, gone, err
		}
	}
	return nil, false, modified(r, name)
}

func checkPreconditions(r *store.Resource, old *store.Item, p *metav1.Preconditions) error {
	if p == nil {
		return nil
	}
	name := old.Object.GetName()
	if p.UID != nil && *p.UID != old.Object.GetUID() {
		return precondition(r, name, "UID in precondition: %v, UID in object meta: %v", *p.UID, old.Object.GetUID())
	}
	if p.ResourceVersion != nil && *p.ResourceVersion != store.FormatRV(old.RV) {
		return precondition(r, name, "ResourceVersion in precondition: %v, ResourceVersion in object meta: %v", *p.ResourceVersion, old.RV)
	}
	return nil
}

func (s *Server) deleteOnce(r *store.Resource, old *store.Item, o *metav1.DeleteOptions) (*store.Item, bool, error) {
	dry := len(o.DryRun) > 0
	if ns, is := old.Object.(*corev1.Namespace); is {
		return s.deleteNamespace(old, ns, dry)
	}
	obj := old.Clone()
	grace := int64(0)
	if pod, is := obj.(*corev1.Pod); is {
		grace = podGrace(pod, o.GracePeriodSeconds)
	}
	changed := s.markDeleted(obj, grace)
	if grace == 0 && len(obj.GetFinalizers()) == 0 {
		if dry {
			return old, true, nil
		}
		item, err := s.remove(r, old, obj)
		return item, true, err
	}
	if dry || !changed {
		return old, false, nil
	}
	item, err := s.Store.Put(r, obj, old)
	if err != nil {
		if apierr := stored(err, r, obj.GetName()); !apierrors.IsConflict(apierr) {
			return nil, false, apierr
		}
		return nil, false, errRaced
	}
	return item, false, nil
}

// podGrace is how long a pod may take to end, in seconds.
func podGrace(pod *corev1.Pod, asked *int64) int64 {
	grace := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if pod.Spec.TerminationGracePeriodSeconds != nil {
		grace = *pod.Spec.TerminationGracePeriodSeconds
	}
	if asked != nil {
		grace = *asked
	}
	if grace < 0 {
		grace = 1
	}
	// Nothing runs: nobody has to be waited for.
	if pod.Spec.NodeName == "" || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		grace = 0
	}
	// A second request may shorten the wait, never lengthen it.
	if was := pod.DeletionGracePeriodSeconds; pod.DeletionTimestamp != nil && was != nil && (asked == nil || *was < grace) {
		grace = *was
	}
	return grace
}

// markDeleted sets the time at which the grace ends; false if it was set already and stays.
func (s *Server) markDeleted(obj store.Object, grace int64) bool {
	if at := obj.GetDeletionTimestamp(); at != nil {
		was := obj.GetDeletionGracePeriodSeconds()
		if was == nil || *was == grace {
			return false
		}
		sooner := metav1.NewTime(at.Add(time.Duration(grace-*was) * time.Second))
		obj.SetDeletionTimestamp(&sooner)
		obj.SetDeletionGracePeriodSeconds(&grace)
		return true
	}
	end := metav1.NewTime(s.Now().Add(time.Duration(grace) * time.Second).Truncate(time.Second))
	obj.SetDeletionTimestamp(&end)
	obj.SetDeletionGracePeriodSeconds(&grace)
	if g := obj.GetGeneration(); g > 0 {
		obj.SetGeneration(g + 1)
	}
	return true
}

func (s *Server) deleteCollection(w http.ResponseWriter, r *request) error {
	if r.resource == store.Namespaces {
		return apierrors.NewMethodNotSupported(r.resource.GR(), "deletecollection")
	}
	sel, err := r.selector()
	if err != nil {
		return err
	}
	o, err := deleteOptions(r)
	if err != nil {
		return err
	}
	items, rv := s.pick(r.resource, &sel)
	for _, item := range items {
		one := *o
		uid := item.Object.GetUID()
		one.Preconditions = &metav1.Preconditions{UID: &uid}
		_, _, err := s.Delete(r.resource, item.Object.GetNamespace(), item.Object.GetName(), &one)
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return err
		}
	}
	w.Header().Set("Content-Type", typeJSON)
	_, _ = w.Write(jsonList(r.resource, items, rv))
	return nil
}
