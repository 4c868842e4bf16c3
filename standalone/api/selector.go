package api

import (
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"worknode/standalone/store"
)

// selector is what a list or watch is narrowed to.
type selector struct {
	namespace string
	name      string // from the path
	labels    labels.Selector
	fields    fields.Selector
	all       bool // nothing is asked beyond the namespace
}

func (r *request) selector() (selector, error) {
	sel := selector{namespace: r.namespace, name: r.name, labels: labels.Everything(), fields: fields.Everything()}
	var err error
	if text := r.query.Get("labelSelector"); text != "" {
		if sel.labels, err = labels.Parse(text); err != nil {
			return sel, apierrors.NewBadRequest(fmt.Sprintf("unable to parse requirement: %v", err))
		}
	}
	if text := r.query.Get("fieldSelector"); text != "" {
		if sel.fields, err = fields.ParseSelector(text); err != nil {
			return sel, apierrors.NewBadRequest(err.Error())
		}
		for _, req := range sel.fields.Requirements() {
			if _, ok := fieldOf(r.resource.New(), req.Field); !ok {
				return sel, apierrors.NewBadRequest(fmt.Sprintf("field label not supported: %s", req.Field))
			}
		}
	}
	sel.all = sel.name == "" && sel.labels.Empty() && sel.fields.Empty()
	return sel, nil
}

// matches reports whether the selector picks an object.
func (sel *selector) matches(item *store.Item) bool {
	if item == nil {
		return false
	}
	obj := item.Object
	if sel.namespace != "" && obj.GetNamespace() != sel.namespace {
		return false
	}
	if sel.all {
		return true
	}
	if sel.name != "" && obj.GetName() != sel.name {
		return false
	}
	return sel.labels.Matches(labels.Set(obj.GetLabels())) && sel.fields.Matches(fieldsOf{obj})
}

// only is the one name that the selector can match, if its fields say so; a list of it needs no scan.
func (sel *selector) only() (string, bool) {
	if sel.name != "" {
		return sel.name, true
	}
	return sel.fields.RequiresExactMatch("metadata.name")
}

// fieldsOf lets a field selector look into an object.
type fieldsOf struct{ store.Object }

func (f fieldsOf) Has(field string) bool { _, ok := fieldOf(f.Object, field); return ok }
func (f fieldsOf) Get(field string) string {
	value, _ := fieldOf(f.Object, field)
	return value
}

// fieldOf returns a field that selectors may name; not ok if the kind has no such field.
// Source: Kubernetes docs, field selectors, list of supported fields.
func fieldOf(obj store.Object, field string) (string, bool) {
	switch field {
	case "metadata.name":
		return obj.GetName(), true
	case "metadata.namespace":
		return obj.GetNamespace(), true
	}
	switch o := obj.(type) {
	case *corev1.Pod:
		return podField(o, field)
	case *corev1.Event:
		return eventField(o, field)
	case *corev1.Service:
		switch field {
		case "spec.clusterIP":
			return o.Spec.ClusterIP, true
		case "spec.type":
			return string(o.Spec.Type), true
		}
	case *corev1.Secret:
		if field == "type" {
			return string(o.Type), true
		}
	case *corev1.Node:
		if field == "spec.unschedulable" {
			return strconv.FormatBool(o.Spec.Unschedulable), true
		}
	case *corev1.Namespace:
		if field == "status.phase" {
			return string(o.Status.Phase), true
		}
	}
	return "", false
}

func podField(pod *corev1.Pod, field string) (string, bool) {
	switch field {
	case "spec.nodeName":
		return pod.Spec.NodeName, true
	case "spec.restartPolicy":
		return string(pod.Spec.RestartPolicy), true
	case "spec.schedulerName":
		return pod.Spec.SchedulerName, true
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, true
	case "spec.hostNetwork":
		return strconv.FormatBool(pod.Spec.HostNetwork), true
	case "status.phase":
		return string(pod.Status.Phase), true
	case "status.podIP":
		return pod.Status.PodIP, true
	case "status.podIPs":
		if len(pod.Status.PodIPs) == 0 {
			return "", true
		}
		return pod.Status.PodIPs[0].IP, true
	case "status.nominatedNodeName":
		return pod.Status.NominatedNodeName, true
	}
	return "", false
}

func eventField(e *corev1.Event, field string) (string, bool) {
	switch field {
	case "involvedObject.kind":
		return e.InvolvedObject.Kind, true
	case "involvedObject.namespace":
		return e.InvolvedObject.Namespace, true
	case "involvedObject.name":
		return e.InvolvedObject.Name, true
	case "involvedObject.uid":
		return string(e.InvolvedObject.UID), true
	case "involvedObject.apiVersion":
		return e.InvolvedObject.APIVersion, true
	case "involvedObject.resourceVersion":
		return e.InvolvedObject.ResourceVersion, true
	case "involvedObject.fieldPath":
		return e.InvolvedObject.FieldPath, true
	case "reason":
		return e.Reason, true
	case "reportingComponent":
		return e.ReportingController, true
	case "source":
		if e.Source.Component == "" {
			return e.ReportingController, true
		}
		return e.Source.Component, true
	case "type":
		return e.Type, true
	}
	return "", false
}
