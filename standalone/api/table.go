package api

import (
	"fmt"
	"net/http"
	"sort"
	"strconv"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"

	"worknode/standalone/store"
)

// columns of one kind's table; wide ones are shown with -o wide only.
type columns struct {
	names []string
	wide  []string
	row   func(s *Server, obj store.Object) []any
}

var tables = map[*store.Resource]columns{
	store.Pods:            {[]string{"Name", "Ready", "Status", "Restarts", "Age"}, []string{"IP", "Node", "Nominated Node", "Readiness Gates"}, podRow},
	store.Services:        {[]string{"Name", "Type", "Cluster-IP", "External-IP", "Port(s)", "Age"}, []string{"Selector"}, serviceRow},
	store.EndpointSlices:  {[]string{"Name", "AddressType", "Ports", "Endpoints", "Age"}, nil, sliceRow},
	store.Nodes:           {[]string{"Name", "Status", "Roles", "Age", "Version"}, []string{"Internal-IP", "External-IP", "OS-Image", "Kernel-Version", "Container-Runtime"}, nodeRow},
	store.Events:          {[]string{"Last Seen", "Type", "Reason", "Object", "Message"}, []string{"Subobject", "Source", "First Seen", "Count", "Name"}, eventRow},
	store.ConfigMaps:      {[]string{"Name", "Data", "Age"}, nil, configMapRow},
	store.Secrets:         {[]string{"Name", "Type", "Data", "Age"}, nil, secretRow},
	store.Namespaces:      {[]string{"Name", "Status", "Age"}, nil, namespaceRow},
	store.Leases:          {[]string{"Name", "Holder", "Age"}, nil, leaseRow},
	store.ServiceAccounts: {[]string{"Name", "Secrets", "Age"}, nil, accountRow},
}

// table is the form in which kubectl get shows objects.
func (s *Server) table(r *request, items []*store.Item, rv uint64, headers bool) ([]byte, error) {
	cols := tables[r.resource]
	t := metav1.Table{
		TypeMeta: metav1.TypeMeta{Kind: "Table", APIVersion: "meta.k8s.io/v1"}, ListMeta: metav1.ListMeta{ResourceVersion: store.FormatRV(rv)},
		Rows: make([]metav1.TableRow, 0, len(items)),
	}
	if headers {
		t.ColumnDefinitions = cols.definitions()
	}
	include := metav1.IncludeObjectPolicy(r.query.Get("includeObject"))
	for _, item := range items {
		row := metav1.TableRow{Cells: cols.row(s, item.Object)}
		switch include {
		case metav1.IncludeNone:
		case metav1.IncludeObject:
			row.Object = runtime.RawExtension{Raw: item.JSON()}
		case "", metav1.IncludeMetadata:
			row.Object = runtime.RawExtension{Raw: mustJSON(metadataOf(item.Object))}
		default:
			return nil, apierrors.NewGenericServerResponse(http.StatusBadRequest, "get", r.resource.GR(), "", fmt.Sprintf("unrecognized includeObject value: %q", include), 0, false)
		}
		t.Rows = append(t.Rows, row)
	}
	return mustJSON(&t), nil
}

func (c columns) definitions() []metav1.TableColumnDefinition {
	out := make([]metav1.TableColumnDefinition, 0, len(c.names)+len(c.wide))
	for i, n := range append(append([]string{}, c.names...), c.wide...) {
		d := metav1.TableColumnDefinition{Name: n, Type: "string"}
		if n == "Name" {
			d.Format = "name"
		}
		if i >= len(c.names) {
			d.Priority = 1
		}
		switch n {
		case "Data", "Count", "Secrets":
			d.Type = "integer"
		}
		out = append(out, d)
	}
	return out
}

// metadataOf is an object with nothing but its metadata.
func metadataOf(obj store.Object) *metav1.PartialObjectMetadata {
	meta := metav1.ObjectMeta{
		Name: obj.GetName(), GenerateName: obj.GetGenerateName(), Namespace: obj.GetNamespace(), UID: obj.GetUID(), ResourceVersion: obj.GetResourceVersion(),
		Generation: obj.GetGeneration(), CreationTimestamp: obj.GetCreationTimestamp(), DeletionTimestamp: obj.GetDeletionTimestamp(),
		DeletionGracePeriodSeconds: obj.GetDeletionGracePeriodSeconds(), Labels: obj.GetLabels(), Annotations: obj.GetAnnotations(),
		OwnerReferences: obj.GetOwnerReferences(), Finalizers: obj.GetFinalizers(), ManagedFields: obj.GetManagedFields(),
	}
	return &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{Kind: "PartialObjectMetadata", APIVersion: "meta.k8s.io/v1"}, ObjectMeta: meta}
}

// age is how long ago something was, in kubectl's words.
func (s *Server) age(t metav1.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(s.Now().Sub(t.Time))
}

func none(text string) string {
	if text == "" {
		return "<none>"
	}
	return text
}

func serviceRow(s *Server, obj store.Object) []any {
	svc := obj.(*corev1.Service)
	ports := make([]string, len(svc.Spec.Ports))
	for i, p := range svc.Spec.Ports {
		ports[i] = fmt.Sprintf("%d/%s", p.Port, p.Protocol)
		if p.NodePort > 0 {
			ports[i] = fmt.Sprintf("%d:%d/%s", p.Port, p.NodePort, p.Protocol)
		}
	}
	selector := make([]string, 0, len(svc.Spec.Selector))
	for k, v := range svc.Spec.Selector {
		selector = append(selector, k+"="+v)
	}
	sort.Strings(selector)
	return []any{svc.Name, string(svc.Spec.Type), none(svc.Spec.ClusterIP), externalIPs(svc), none(strings.Join(ports, ",")),
		s.age(svc.CreationTimestamp), none(strings.Join(selector, ","))}
}

func externalIPs(svc *corev1.Service) string {
	ips := append([]string{}, svc.Spec.ExternalIPs...)
	switch svc.Spec.Type {
	case corev1.ServiceTypeExternalName:
		return svc.Spec.ExternalName
	case corev1.ServiceTypeLoadBalancer:
		for _, in := range svc.Status.LoadBalancer.Ingress {
			if in.IP != "" {
				ips = append(ips, in.IP)
			} else {
				ips = append(ips, in.Hostname)
			}
		}
		if len(ips) == 0 {
			return "<pending>"
		}
	}
	return none(strings.Join(ips, ","))
}

func sliceRow(s *Server, obj store.Object) []any {
	slice := obj.(*discoveryv1.EndpointSlice)
	var ports, addresses []string
	for _, p := range slice.Ports {
		if p.Port != nil {
			ports = append(ports, strconv.Itoa(int(*p.Port)))
		}
	}
	for _, e := range slice.Endpoints {
		addresses = append(addresses, e.Addresses...)
	}
	return []any{slice.Name, string(slice.AddressType), some(ports, "<unset>"), some(addresses, "<unset>"), s.age(slice.CreationTimestamp)}
}

// some joins the first three of a list.
func some(list []string, empty string) string {
	const most = 3
	switch {
	case len(list) == 0:
		return empty
	case len(list) > most:
		return fmt.Sprintf("%s + %d more...", strings.Join(list[:most], ","), len(list)-most)
	}
	return strings.Join(list, ",")
}

func nodeRow(s *Server, obj store.Object) []any {
	node := obj.(*corev1.Node)
	status := "Unknown"
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			status = map[corev1.ConditionStatus]string{corev1.ConditionTrue: "Ready", corev1.ConditionFalse: "NotReady", corev1.ConditionUnknown: "NotReady"}[c.Status]
		}
	}
	if node.Spec.Unschedulable {
		status += ",SchedulingDisabled"
	}
	var roles []string
	for label := range node.Labels {
		if role, is := strings.CutPrefix(label, "node-role.kubernetes.io/"); is && role != "" {
			roles = append(roles, role)
		}
	}
	sort.Strings(roles)
	address := func(kind corev1.NodeAddressType) string {
		for _, a := range node.Status.Addresses {
			if a.Type == kind {
				return a.Address
			}
		}
		return "<none>"
	}
	info := node.Status.NodeInfo
	unknown := func(text string) string {
		if text == "" {
			return "<unknown>"
		}
		return text
	}
	return []any{node.Name, status, none(strings.Join(roles, ",")), s.age(node.CreationTimestamp), info.KubeletVersion,
		address(corev1.NodeInternalIP), address(corev1.NodeExternalIP), unknown(info.OSImage), unknown(info.KernelVersion), unknown(info.ContainerRuntimeVersion)}
}

func eventRow(s *Server, obj store.Object) []any {
	e := obj.(*corev1.Event)
	first, last, count := e.FirstTimestamp, e.LastTimestamp, e.Count
	if first.IsZero() {
		first = metav1.Time(e.EventTime)
	}
	if e.Series != nil {
		last, count = metav1.Time(e.Series.LastObservedTime), e.Series.Count
	}
	if last.IsZero() {
		last = first
	}
	if count == 0 {
		count = 1
	}
	source := e.Source.Component
	if source == "" {
		source = e.ReportingController
	}
	if e.Source.Host != "" {
		source += ", " + e.Source.Host
	}
	object := strings.ToLower(e.InvolvedObject.Kind) + "/" + e.InvolvedObject.Name
	if e.InvolvedObject.Name == "" {
		object = strings.ToLower(e.InvolvedObject.Kind)
	}
	return []any{s.age(last), e.Type, e.Reason, object, strings.TrimSpace(e.Message), e.InvolvedObject.FieldPath, source, s.age(first), int64(count), e.Name}
}

func configMapRow(s *Server, obj store.Object) []any {
	cm := obj.(*corev1.ConfigMap)
	return []any{cm.Name, int64(len(cm.Data) + len(cm.BinaryData)), s.age(cm.CreationTimestamp)}
}

func secretRow(s *Server, obj store.Object) []any {
	secret := obj.(*corev1.Secret)
	return []any{secret.Name, string(secret.Type), int64(len(secret.Data)), s.age(secret.CreationTimestamp)}
}

func namespaceRow(s *Server, obj store.Object) []any {
	ns := obj.(*corev1.Namespace)
	return []any{ns.Name, string(ns.Status.Phase), s.age(ns.CreationTimestamp)}
}

func leaseRow(s *Server, obj store.Object) []any {
	lease := obj.(*coordinationv1.Lease)
	holder := ""
	if lease.Spec.HolderIdentity != nil {
		holder = *lease.Spec.HolderIdentity
	}
	return []any{lease.Name, holder, s.age(lease.CreationTimestamp)}
}

func accountRow(s *Server, obj store.Object) []any {
	account := obj.(*corev1.ServiceAccount)
	return []any{account.Name, int64(len(account.Secrets)), s.age(account.CreationTimestamp)}
}

// sinceRestart is "(5m ago)" behind a number of restarts.
func (s *Server) sinceRestart(restarts int, last time.Time) string {
	if restarts == 0 || last.IsZero() {
		return strconv.Itoa(restarts)
	}
	return fmt.Sprintf("%d (%s ago)", restarts, duration.HumanDuration(s.Now().Sub(last)))
}
