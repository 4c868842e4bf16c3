package status

import (
	"encoding/json"
	"slices"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// owned are the conditions that the kubelet writes; all others belong to somebody else and are never sent.
var owned = [...]v1.PodConditionType{v1.PodReadyToStartContainers, v1.PodInitialized, v1.PodReady, v1.ContainersReady, v1.PodScheduled}

// Owned says whether the kubelet writes conditions of this type.
func Owned(t v1.PodConditionType) bool { return slices.Contains(owned[:], t) }

// The types below are PodStatus and PodCondition without omitempty on what may become empty: a strategic merge patch
// keeps what it does not name.
type patch struct {
	Metadata struct {
		UID types.UID `json:"uid"` // the server refuses the patch for a successor of the same name
	} `json:"metadata"`
	Status fields `json:"status"`
}

type fields struct {
	ObservedGeneration    int64                `json:"observedGeneration,omitempty"`
	Phase                 v1.PodPhase          `json:"phase"`
	Conditions            []condition          `json:"conditions"`
	Reason                *string              `json:"reason"`
	Message               *string              `json:"message"`
	HostIP                string               `json:"hostIP,omitempty"`
	HostIPs               []v1.HostIP          `json:"hostIPs,omitempty"`
	PodIP                 string               `json:"podIP,omitempty"`
	PodIPs                []any                `json:"podIPs,omitempty"`
	StartTime             *metav1.Time         `json:"startTime,omitempty"`
	InitContainerStatuses []v1.ContainerStatus `json:"initContainerStatuses,omitempty"`
	ContainerStatuses     []v1.ContainerStatus `json:"containerStatuses,omitempty"`
	Ephemeral             []v1.ContainerStatus `json:"ephemeralContainerStatuses,omitempty"`
	QOSClass              v1.PodQOSClass       `json:"qosClass,omitempty"`
}

type condition struct {
	Type               v1.PodConditionType `json:"type"`
	ObservedGeneration int64               `json:"observedGeneration,omitempty"`
	Status             v1.ConditionStatus  `json:"status"`
	LastTransitionTime metav1.Time         `json:"lastTransitionTime"`
	Reason             *string             `json:"reason"`
	Message            *string             `json:"message"`
}

// encode makes the strategic merge patch that turns any older status of ours into s. moved says that the pod's addresses
// may differ from those the server has: lists that merge by key must then be replaced.
func encode(uid types.UID, s *v1.PodStatus, moved bool) ([]byte, error) {
	p := patch{Status: fields{
		ObservedGeneration: s.ObservedGeneration, Phase: s.Phase, Reason: orNull(s.Reason), Message: orNull(s.Message),
		HostIP: s.HostIP, HostIPs: s.HostIPs, PodIP: s.PodIP, StartTime: s.StartTime,
		InitContainerStatuses: s.InitContainerStatuses, ContainerStatuses: s.ContainerStatuses, Ephemeral: s.EphemeralContainerStatuses, QOSClass: s.QOSClass,
		Conditions: make([]condition, 0, len(owned)),
	}}
	p.Metadata.UID = uid
	for i := range s.Conditions {
		if c := &s.Conditions[i]; Owned(c.Type) {
			p.Status.Conditions = append(p.Status.Conditions, condition{
				c.Type, c.ObservedGeneration, c.Status, c.LastTransitionTime, orNull(c.Reason), orNull(c.Message),
			})
		}
	}
	if moved && len(s.PodIPs) > 0 {
		p.Status.PodIPs = append(p.Status.PodIPs, map[string]string{"$patch": "replace"})
	}
	for _, ip := range s.PodIPs {
		p.Status.PodIPs = append(p.Status.PodIPs, ip)
	}
	return json.Marshal(p)
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
