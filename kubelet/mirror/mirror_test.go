package mirror

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const owner = types.UID("node")

func static(hash string) *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "api-n", Namespace: "kube-system", UID: types.UID(hash), Annotations: map[string]string{hashAnnotation: hash}}}
}

func seen(hash string, by types.UID) *v1.Pod {
	m := picture(static(hash), "n", by)
	m.UID = "mirror"
	return m
}

func TestSteps(t *testing.T) {
	leaving := seen("a", owner)
	leaving.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	for name, c := range map[string]struct {
		want, have     *v1.Pod
		create, remove bool
	}{
		"a static pod without a picture gets one":                {want: static("a"), create: true},
		"a true picture stays":                                   {want: static("a"), have: seen("a", owner)},
		"a picture of what the file said before goes":            {want: static("b"), have: seen("a", owner), remove: true},
		"a picture without a static pod goes":                    {have: seen("a", owner), remove: true},
		"a picture that somebody deletes goes at once":           {want: static("a"), have: leaving, remove: true},
		"a picture that an earlier Node object owned is renewed": {want: static("a"), have: seen("a", "older"), remove: true},
		"nothing is left alone":                                  {},
	} {
		t.Run(name, func(t *testing.T) {
			want, have := map[types.NamespacedName]*v1.Pod{}, map[types.NamespacedName]*v1.Pod{}
			if c.want != nil {
				want[types.NamespacedName{Name: "api-n"}] = c.want
			}
			if c.have != nil {
				have[types.NamespacedName{Name: "api-n"}] = c.have
			}
			got := steps(want, have, owner)[types.NamespacedName{Name: "api-n"}]
			if (got.create != nil) != c.create || (got.remove != nil) != c.remove {
				t.Errorf("create %v, remove %v", got.create != nil, got.remove != nil)
			}
		})
	}
}

func TestPictureIsWhatNodeRestrictionAccepts(t *testing.T) {
	p := picture(static("a"), "n", owner)
	ref := metav1.GetControllerOf(p)
	if p.Annotations[mirrorAnnotation] != "a" || ref == nil || ref.Kind != "Node" || ref.Name != "n" || ref.UID != owner || p.UID != "" {
		t.Errorf("%+v", p.ObjectMeta)
	}
	if static("a").Annotations[mirrorAnnotation] != "" {
		t.Error("the static pod itself was marked")
	}
}
