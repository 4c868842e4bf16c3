// Package validate says what is wrong with an object, in the words that Kubernetes users know, with the path of the
// field. It is pure and expects objects with defaults filled in. It knows the kinds of a standalone node; rules that need
// other objects (does the namespace exist, is the node port free) are the server's.
// Source: the API reference, v1.37, and the answers of a real API server.
package validate

import (
	"slices"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Create returns what is wrong with a new object; nothing for kinds without rules.
func Create(obj metav1.Object) field.ErrorList {
	all := meta(obj)
	switch o := obj.(type) {
	case *corev1.Pod:
		all = append(all, Pod(o)...)
	case *corev1.Service:
		all = append(all, Service(o)...)
	case *corev1.ConfigMap:
		all = append(all, ConfigMap(o)...)
	case *corev1.Secret:
		all = append(all, Secret(o)...)
	case *corev1.Node:
		all = append(all, Node(o)...)
	case *discoveryv1.EndpointSlice:
		all = append(all, EndpointSlice(o)...)
	case *coordinationv1.Lease:
		all = append(all, Lease(o)...)
	}
	return all
}

// Update returns what is wrong with obj as the successor of old.
func Update(obj, old metav1.Object) field.ErrorList {
	all := apivalidation.ValidateObjectMetaAccessorUpdate(obj, old, field.NewPath("metadata"))
	switch o := obj.(type) {
	case *corev1.Pod:
		all = append(all, PodUpdate(o, old.(*corev1.Pod))...)
	case *corev1.Service:
		all = append(all, ServiceUpdate(o, old.(*corev1.Service))...)
	case *corev1.ConfigMap:
		all = append(all, ConfigMapUpdate(o, old.(*corev1.ConfigMap))...)
	case *corev1.Secret:
		all = append(all, SecretUpdate(o, old.(*corev1.Secret))...)
	case *corev1.Node:
		all = append(all, Node(o)...)
	case *discoveryv1.EndpointSlice:
		all = append(all, apivalidation.ValidateImmutableField(o.AddressType, old.(*discoveryv1.EndpointSlice).AddressType, field.NewPath("addressType"))...)
		all = append(all, EndpointSlice(o)...)
	case *coordinationv1.Lease:
		all = append(all, Lease(o)...)
	}
	return all
}

func meta(obj metav1.Object) field.ErrorList {
	namespaced, name := true, apivalidation.ValidateNameFunc(apivalidation.NameIsDNSSubdomain)
	switch obj.(type) {
	case *corev1.Node:
		namespaced = false
	case *corev1.Namespace:
		namespaced, name = false, apivalidation.NameIsDNSLabel
	case *corev1.Service:
		name = apivalidation.NameIsDNSLabel
	case *corev1.ServiceAccount:
		name = apivalidation.ValidateServiceAccountName
	case *corev1.Event: // names of events come from many tools and were never checked
		return nil
	}
	return apivalidation.ValidateObjectMetaAccessor(obj, namespaced, name, field.NewPath("metadata"))
}

// maxData is the largest sum of values in a ConfigMap or Secret.
const maxData = 1 << 20

func dataKeys[V ~string | ~[]byte](data map[string]V, path *field.Path, total *int) (all field.ErrorList) {
	for key, value := range data {
		for _, msg := range validation.IsConfigMapKey(key) {
			all = append(all, field.Invalid(path.Key(key), key, msg))
		}
		*total += len(value)
	}
	return all
}

// ConfigMap checks keys and size.
func ConfigMap(cm *corev1.ConfigMap) field.ErrorList {
	total := 0
	all := dataKeys(cm.Data, field.NewPath("data"), &total)
	all = append(all, dataKeys(cm.BinaryData, field.NewPath("binaryData"), &total)...)
	for key := range cm.BinaryData {
		if _, both := cm.Data[key]; both {
			all = append(all, field.Invalid(field.NewPath("data").Key(key), key, "duplicate of key present in binaryData"))
		}
	}
	if total > maxData {
		all = append(all, field.TooLong(field.NewPath(""), "" /*unused*/, maxData))
	}
	return all
}

const frozen = "field is immutable when `immutable` is set"

func isSet(b *bool) bool { return b != nil && *b }

// ConfigMapUpdate checks a change of a ConfigMap.
func ConfigMapUpdate(cm, old *corev1.ConfigMap) (all field.ErrorList) {
	if isSet(old.Immutable) {
		if !isSet(cm.Immutable) {
			all = append(all, field.Forbidden(field.NewPath("immutable"), frozen))
		}
		if !equal(cm.Data, old.Data) {
			all = append(all, field.Forbidden(field.NewPath("data"), frozen))
		}
		if !equal(cm.BinaryData, old.BinaryData) {
			all = append(all, field.Forbidden(field.NewPath("binaryData"), frozen))
		}
	}
	return append(all, ConfigMap(cm)...)
}

// needs are the keys that a type of Secret must have; any of an inner list will do.
var needs = map[corev1.SecretType][]string{
	corev1.SecretTypeDockercfg:           {corev1.DockerConfigKey},
	corev1.SecretTypeDockerConfigJson:    {corev1.DockerConfigJsonKey},
	corev1.SecretTypeSSHAuth:             {corev1.SSHAuthPrivateKey},
	corev1.SecretTypeTLS:                 {corev1.TLSCertKey, corev1.TLSPrivateKeyKey},
	corev1.SecretTypeServiceAccountToken: {},
}

// Secret checks keys, size and what its type asks for.
func Secret(s *corev1.Secret) field.ErrorList {
	total := 0
	path := field.NewPath("data")
	all := dataKeys(s.Data, path, &total)
	if total > maxData {
		all = append(all, field.TooLong(path, "" /*unused*/, maxData))
	}
	for _, key := range needs[s.Type] {
		if _, has := s.Data[key]; !has {
			all = append(all, field.Required(path.Key(key), ""))
		}
	}
	if s.Type == corev1.SecretTypeBasicAuth {
		_, user := s.Data[corev1.BasicAuthUsernameKey]
		if _, pass := s.Data[corev1.BasicAuthPasswordKey]; !user && !pass {
			all = append(all, field.Required(path.Key(corev1.BasicAuthUsernameKey), ""), field.Required(path.Key(corev1.BasicAuthPasswordKey), ""))
		}
	}
	return all
}

// SecretUpdate checks a change of a Secret.
func SecretUpdate(s, old *corev1.Secret) field.ErrorList {
	all := apivalidation.ValidateImmutableField(s.Type, old.Type, field.NewPath("type"))
	if isSet(old.Immutable) {
		if !isSet(s.Immutable) {
			all = append(all, field.Forbidden(field.NewPath("immutable"), frozen))
		}
		if !equal(s.Data, old.Data) {
			all = append(all, field.Forbidden(field.NewPath("data"), frozen))
		}
	}
	return append(all, Secret(s)...)
}

// Node checks taints.
func Node(node *corev1.Node) (all field.ErrorList) {
	path := field.NewPath("spec", "taints")
	for i, t := range node.Spec.Taints {
		for _, msg := range validation.IsQualifiedName(t.Key) {
			all = append(all, field.Invalid(path.Index(i).Child("key"), t.Key, msg))
		}
		switch t.Effect {
		case corev1.TaintEffectNoExecute, corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule:
		default:
			all = append(all, field.NotSupported(path.Index(i).Child("effect"), t.Effect,
				[]corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute}))
		}
	}
	return all
}

// EndpointSlice checks addresses and ports.
func EndpointSlice(slice *discoveryv1.EndpointSlice) (all field.ErrorList) {
	switch slice.AddressType {
	case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN:
	case "":
		all = append(all, field.Required(field.NewPath("addressType"), ""))
	default:
		all = append(all, field.NotSupported(field.NewPath("addressType"), slice.AddressType,
			[]discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN}))
	}
	if len(slice.Endpoints) > 1000 {
		all = append(all, field.TooMany(field.NewPath("endpoints"), len(slice.Endpoints), 1000))
	}
	for i, e := range slice.Endpoints {
		path := field.NewPath("endpoints").Index(i).Child("addresses")
		if len(e.Addresses) == 0 {
			all = append(all, field.Required(path, "must contain at least 1 address"))
		}
		for j, a := range e.Addresses {
			if slice.AddressType != discoveryv1.AddressTypeFQDN {
				all = append(all, validation.IsValidIP(path.Index(j), a)...)
			}
		}
	}
	names := map[string]bool{}
	for i, p := range slice.Ports {
		path := field.NewPath("ports").Index(i)
		name := ""
		if p.Name != nil {
			name = *p.Name
		}
		if names[name] {
			all = append(all, field.Duplicate(path.Child("name"), name))
		}
		names[name] = true
		if p.Protocol != nil {
			all = append(all, protocol(*p.Protocol, path.Child("protocol"))...)
		}
	}
	return all
}

// Lease checks the holder and the numbers.
func Lease(lease *coordinationv1.Lease) (all field.ErrorList) {
	path := field.NewPath("spec")
	if d := lease.Spec.LeaseDurationSeconds; d != nil && *d <= 0 {
		all = append(all, field.Invalid(path.Child("leaseDurationSeconds"), *d, "must be greater than 0"))
	}
	if n := lease.Spec.LeaseTransitions; n != nil && *n < 0 {
		all = append(all, field.Invalid(path.Child("leaseTransitions"), *n, "must be greater than or equal to 0"))
	}
	if h := lease.Spec.HolderIdentity; h != nil && *h == "" {
		all = append(all, field.Invalid(path.Child("holderIdentity"), *h, "must not be empty"))
	}
	return all
}

func protocol(p corev1.Protocol, path *field.Path) field.ErrorList {
	switch p {
	case corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP:
		return nil
	case "":
		return field.ErrorList{field.Required(path, "")}
	}
	return field.ErrorList{field.NotSupported(path, p, []corev1.Protocol{corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP})}
}

func portNumber(n int32, path *field.Path) field.ErrorList {
	if n < 1 || n > 65535 {
		return field.ErrorList{field.Invalid(path, n, "must be between 1 and 65535, inclusive")}
	}
	return nil
}

func notNegative(n int64, path *field.Path) field.ErrorList {
	if n < 0 {
		return field.ErrorList{field.Invalid(path, n, apivalidation.IsNegativeErrorMsg)}
	}
	return nil
}

// msgs turns each message into an error about one value.
func msgs(path *field.Path, value any, list []string) (all field.ErrorList) {
	for _, m := range list {
		all = append(all, field.Invalid(path, value, m))
	}
	return all
}

func oneOf[T ~string](path *field.Path, value T, valid ...T) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	for _, v := range valid {
		if v == value {
			return nil
		}
	}
	slices.Sort(valid)
	return field.ErrorList{field.NotSupported(path, value, valid)}
}
