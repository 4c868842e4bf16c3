package api

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"worknode/standalone/store"
)

// What the server does to objects of one kind before it stores them, beyond defaults and checks. The order is: prepare
// (drop what the client may not say), defaults, complete (add what only the server knows), checks, allocate.

func prepareCreate(s *Server, obj store.Object) {
	switch o := obj.(type) {
	case *corev1.Pod:
		o.Status = corev1.PodStatus{Phase: corev1.PodPending}
		o.Generation = 1
		o.Spec.EphemeralContainers = nil
	case *corev1.Service:
		o.Status = corev1.ServiceStatus{}
	case *corev1.Namespace:
		o.Status = corev1.NamespaceStatus{Phase: corev1.NamespaceActive}
		if o.Name == "" && o.GenerateName != "" {
			o.Name = generate(o.GenerateName)
		}
	}
}

func completeCreate(s *Server, obj store.Object) {
	if pod, is := obj.(*corev1.Pod); is {
		s.bind(pod)
	}
}

// bind does for a pod what admission and the scheduler do in a cluster: this node is the only choice.
func (s *Server) bind(pod *corev1.Pod) {
	spec := &pod.Spec
	if spec.ServiceAccountName == "" {
		spec.ServiceAccountName = "default"
		spec.DeprecatedServiceAccount = "default"
	}
	if spec.Priority == nil {
		priority := int32(0)
		switch spec.PriorityClassName {
		case "system-node-critical":
			priority = 2_000_001_000
		case "system-cluster-critical":
			priority = 2_000_000_000
		}
		spec.Priority = &priority
	}
	if spec.PreemptionPolicy == nil {
		policy := corev1.PreemptLowerPriority
		spec.PreemptionPolicy = &policy
	}
	pod.Status.QOSClass = qosClass(pod)
	if spec.NodeName == "" && len(spec.SchedulingGates) == 0 {
		spec.NodeName = s.NodeName
	}
	condition := corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(s.Now().Truncate(time.Second))}
	if spec.NodeName == "" {
		condition.Status, condition.Reason, condition.Message = corev1.ConditionFalse, corev1.PodReasonSchedulingGated, "Scheduling is blocked due to non-empty scheduling gates"
	}
	pod.Status.Conditions = append(pod.Status.Conditions, condition)
}

func prepareUpdate(obj, was store.Object) {
	switch o := obj.(type) {
	case *corev1.Pod:
		old := was.(*corev1.Pod)
		o.Status = *old.Status.DeepCopy()
		// What the server filled in at creation need not be repeated by the client.
		keep(&o.Spec.NodeName, old.Spec.NodeName)
		keep(&o.Spec.ServiceAccountName, old.Spec.ServiceAccountName)
		if o.Spec.Priority == nil {
			o.Spec.Priority = old.Spec.Priority
		}
		if o.Spec.PreemptionPolicy == nil {
			o.Spec.PreemptionPolicy = old.Spec.PreemptionPolicy
		}
	case *corev1.Service:
		old := was.(*corev1.Service)
		o.Status = *old.Status.DeepCopy()
		keepAddresses(o, old)
	case *corev1.Node:
		o.Status = *was.(*corev1.Node).Status.DeepCopy()
	case *corev1.Namespace:
		o.Status = *was.(*corev1.Namespace).Status.DeepCopy()
		o.Spec = *was.(*corev1.Namespace).Spec.DeepCopy()
	}
}

func keep(s *string, old string) {
	if *s == "" {
		*s = old
	}
}

// debugSub is the subresource by which kubectl debug adds containers to a running pod. Source: KEP-277.
const debugSub = "ephemeralcontainers"

// prepareDebug lets nothing of a change through but ephemeral containers.
func prepareDebug(obj, was store.Object) {
	pod, old := obj.(*corev1.Pod), was.(*corev1.Pod)
	added := pod.Spec.EphemeralContainers
	pod.Spec, pod.Status = *old.Spec.DeepCopy(), *old.Status.DeepCopy()
	pod.Spec.EphemeralContainers = added
	pod.SetLabels(old.Labels)
	pod.SetAnnotations(old.Annotations)
}

// prepareStatus keeps a change of the status subresource out of the spec.
func prepareStatus(obj, was store.Object) {
	obj.SetOwnerReferences(was.GetOwnerReferences())
	switch o := obj.(type) {
	case *corev1.Pod:
		old := was.(*corev1.Pod)
		o.Spec = *old.Spec.DeepCopy()
		if o.Status.QOSClass == "" {
			o.Status.QOSClass = old.Status.QOSClass
		}
	case *corev1.Service:
		o.Spec = *was.(*corev1.Service).Spec.DeepCopy()
	case *corev1.Node:
		o.Spec = *was.(*corev1.Node).Spec.DeepCopy()
	case *corev1.Namespace:
		o.Spec = *was.(*corev1.Namespace).Spec.DeepCopy()
		o.Status.Phase = was.(*corev1.Namespace).Status.Phase
	}
}

// completeUpdate counts changes of a pod's spec, so that its status can say which one it is about.
func completeUpdate(obj, was store.Object) {
	if pod, is := obj.(*corev1.Pod); is && !equality.Semantic.DeepEqual(pod.Spec, was.(*corev1.Pod).Spec) {
		pod.Generation = was.GetGeneration() + 1
	}
}

// created does what other controllers would do in a cluster when they see a new object.
func (s *Server) created(item *store.Item) {
	if ns, is := item.Object.(*corev1.Namespace); is {
		no := false
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}, AutomountServiceAccountToken: &no}
		// An account that is there already, from before a restart, is as good.
		_, _ = s.Create(store.ServiceAccounts, ns.Name, account, Write{})
	}
}

// qosClass ranks a pod by what it reserves. Source: Kubernetes docs, pod quality of service classes.
func qosClass(pod *corev1.Pod) corev1.PodQOSClass {
	some, whole := false, true
	look := func(r *corev1.ResourceRequirements) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			request, limit := r.Requests[name], r.Limits[name]
			some = some || !request.IsZero() || !limit.IsZero()
			whole = whole && !limit.IsZero() && request.Cmp(limit) == 0
		}
	}
	if pod.Spec.Resources != nil && (len(pod.Spec.Resources.Requests) > 0 || len(pod.Spec.Resources.Limits) > 0) {
		look(pod.Spec.Resources)
	} else {
		for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
			look(&c.Resources)
		}
	}
	switch {
	case !some:
		return corev1.PodQOSBestEffort
	case whole:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}
