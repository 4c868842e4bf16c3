package source

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"worknode/defaults"
	"worknode/fault"
	"worknode/strict"
	"worknode/validate"
)

// The annotations by which everybody tells static pods and their mirrors from others.
// Source: Kubernetes docs, static pods; well-known labels and annotations.
const (
	Origin = "kubernetes.io/config.source" // file, http or api
	Seen   = "kubernetes.io/config.seen"   // when this process first read it
	Hash   = "kubernetes.io/config.hash"   // the static pod's UID
	Mirror = "kubernetes.io/config.mirror" // on a mirror: the hash of the static pod that it shows
)

// Static says whether the pod comes from the node itself and not from the API server.
func Static(pod *v1.Pod) bool {
	from := pod.Annotations[Origin]
	return from == "file" || from == "http"
}

// IsMirror says whether the pod is the API server's picture of a static pod.
func IsMirror(pod *v1.Pod) bool { _, is := pod.Annotations[Mirror]; return is }

// parse reads one document: a Pod, or a list of pods. from names it in errors, origin is file or http.
// Errors are Invalid and name the document, the line where it can be told, the pod and the field.
func parse(text []byte, from, origin, node string) ([]*v1.Pod, error) {
	tree, err := strict.Parse(text)
	if err != nil {
		return nil, wrong(from, strict.Lines{}, err)
	}
	lines := strict.LinesOf(text)
	switch tree["kind"] {
	case "PodList", "List":
		items, ok := tree["items"].([]any)
		if !ok {
			return nil, fault.New(fault.Invalid, "%s: items: a list of pods has a list of them here", from)
		}
		pods := make([]*v1.Pod, 0, len(items))
		for i, item := range items {
			one, ok := item.(map[string]any)
			if !ok {
				return nil, fault.New(fault.Invalid, "%s: items[%d]: want a Pod", from, i)
			}
			if one["kind"] == nil { // the items of a PodList need not say it again
				one["apiVersion"], one["kind"] = "v1", "Pod"
			}
			pod, err := parsePod(one, fmt.Sprintf("%s: items[%d]", from, i), lines.Below("items", i), origin, node)
			if err != nil {
				return nil, err
			}
			pods = append(pods, pod)
		}
		return pods, nil
	default:
		pod, err := parsePod(tree, from, lines, origin, node)
		if err != nil {
			return nil, err
		}
		return []*v1.Pod{pod}, nil
	}
}

func parsePod(tree map[string]any, from string, lines strict.Lines, origin, node string) (*v1.Pod, error) {
	if tree["apiVersion"] != "v1" || tree["kind"] != "Pod" {
		return nil, fault.New(fault.Invalid, "%s: apiVersion %v, kind %v: a static pod is a v1 Pod", from, tree["apiVersion"], tree["kind"])
	}
	pod := &v1.Pod{}
	if err := strict.Into(tree, pod); err != nil {
		return nil, wrong(from, lines, err)
	}
	if pod.Name == "" {
		return nil, fault.New(fault.Invalid, "%s: metadata.name: a static pod needs a name", from)
	}
	own(pod, from, origin, node)
	defaults.Pod(pod)
	errs := append(validate.Create(pod), dependent(&pod.Spec)...)
	if len(errs) == 0 {
		return pod, nil
	}
	words := make([]string, len(errs))
	for i, e := range errs {
		words[i] = e.Error()
		if line := lines.Find(e.Field); line > 0 {
			words[i] = fmt.Sprintf("line %d: %s", line, words[i])
		}
	}
	return nil, fault.New(fault.Invalid, "%s: pod %s: %s", from, pod.Name, strings.Join(words, "; "))
}

// wrong is an error of strict with the document and the line in front.
func wrong(from string, lines strict.Lines, err error) error {
	e := new(strict.Error)
	if errors.As(err, &e) {
		if e.Line == 0 {
			e.Line = lines.Find(e.Field)
		}
		if e.Line > 0 {
			from = fmt.Sprintf("%s: line %d", from, e.Line)
		}
	}
	return fault.New(fault.Invalid, "%s: %w", from, err)
}

// own makes the pod this node's: its name tells the node, its UID is that of its content at this place, and taints that
// evict do not concern it. What only the API server says is dropped. Source: Kubernetes docs, static pods; upstream's
// static pods have such UIDs too, but not these very ones.
func own(pod *v1.Pod, from, origin, node string) {
	pod.Name += "-" + strings.ToLower(node)
	if pod.Namespace == "" {
		pod.Namespace = metav1.NamespaceDefault
	}
	pod.Spec.NodeName = node
	pod.Status = v1.PodStatus{Phase: v1.PodPending}
	pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds, pod.OwnerReferences, pod.Finalizers = nil, nil, nil, nil
	if pod.UID == "" {
		content, _ := json.Marshal(pod) // a pod that was just decoded always encodes
		sum := sha256.Sum256(bytes.Join([][]byte{[]byte(node), []byte(from), content}, []byte{0}))
		pod.UID = types.UID(hex.EncodeToString(sum[:16]))
	}
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[Origin] = origin
	pod.Annotations[Hash] = string(pod.UID)
	delete(pod.Annotations, Mirror)
	if origin == "file" {
		forever := v1.Toleration{Operator: v1.TolerationOpExists, Effect: v1.TaintEffectNoExecute}
		if !slices.Contains(pod.Spec.Tolerations, forever) {
			pod.Spec.Tolerations = append(pod.Spec.Tolerations, forever)
		}
	}
}

// dependent names what a static pod uses of the API server: it must run before there is one, and its mirror could not be
// created. Source: Kubernetes docs, static pods, "The spec of a static Pod cannot refer to other API objects".
func dependent(spec *v1.PodSpec) (all field.ErrorList) {
	path := field.NewPath("spec")
	refuse := func(at *field.Path, what string) {
		all = append(all, field.Forbidden(at, "a static pod cannot refer to a "+what))
	}
	if name := spec.ServiceAccountName; name != "" {
		refuse(path.Child("serviceAccountName"), "ServiceAccount")
	}
	if len(spec.ResourceClaims) > 0 {
		refuse(path.Child("resourceClaims"), "ResourceClaim")
	}
	for i := range spec.ImagePullSecrets {
		refuse(path.Child("imagePullSecrets").Index(i), "Secret")
	}
	for i := range spec.Volumes {
		if what := source(&spec.Volumes[i].VolumeSource); what != "" {
			refuse(path.Child("volumes").Index(i), what)
		}
	}
	containers := func(list []v1.Container, name string) {
		for i := range list {
			at := path.Child(name).Index(i)
			for j, from := range list[i].EnvFrom {
				if from.ConfigMapRef != nil || from.SecretRef != nil {
					refuse(at.Child("envFrom").Index(j), "ConfigMap or Secret")
				}
			}
			for j, e := range list[i].Env {
				if e.ValueFrom != nil && (e.ValueFrom.ConfigMapKeyRef != nil || e.ValueFrom.SecretKeyRef != nil) {
					refuse(at.Child("env").Index(j).Child("valueFrom"), "ConfigMap or Secret")
				}
			}
		}
	}
	containers(spec.InitContainers, "initContainers")
	containers(spec.Containers, "containers")
	if len(spec.EphemeralContainers) > 0 {
		all = append(all, field.Forbidden(path.Child("ephemeralContainers"), "they are added to pods that run"))
	}
	return all
}

// source is the kind of API object that a volume comes from, empty if from none.
func source(v *v1.VolumeSource) string {
	switch {
	case v.ConfigMap != nil:
		return "ConfigMap"
	case v.Secret != nil:
		return "Secret"
	case v.PersistentVolumeClaim != nil, v.Ephemeral != nil:
		return "PersistentVolumeClaim"
	case v.CSI != nil && v.CSI.NodePublishSecretRef != nil:
		return "Secret"
	case v.Projected != nil:
		for _, s := range v.Projected.Sources {
			switch {
			case s.ConfigMap != nil:
				return "ConfigMap"
			case s.Secret != nil:
				return "Secret"
			case s.ServiceAccountToken != nil:
				return "ServiceAccount"
			case s.ClusterTrustBundle != nil:
				return "ClusterTrustBundle"
			case s.PodCertificate != nil:
				return "PodCertificateRequest"
			}
		}
	}
	return ""
}

// set is what a static source has told so far; it turns a whole new picture into what changed.
type set struct {
	pods   Pods
	known  map[types.UID]*v1.Pod
	synced bool
}

// tell compares the picture with the last one. Of pods with one name only the first is told.
func (s *set) tell(all []*v1.Pod, now time.Time) (doubles []string) {
	names, next := map[string]bool{}, map[types.UID]*v1.Pod{}
	for _, pod := range all {
		key := pod.Namespace + "/" + pod.Name
		if names[key] {
			doubles = append(doubles, key)
			continue
		}
		names[key] = true
		next[pod.UID] = pod
	}
	for uid, pod := range s.known {
		if next[uid] == nil {
			s.pods.Gone(pod.DeepCopy())
		}
	}
	for uid, pod := range next {
		if s.known[uid] == nil {
			pod.Annotations[Seen] = now.Format(time.RFC3339Nano)
			s.pods.Put(pod.DeepCopy())
		}
	}
	s.known = next
	if !s.synced {
		s.synced = true
		s.pods.Synced()
	}
	return doubles
}
