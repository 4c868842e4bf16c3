package node

import (
	"context"
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RuntimeOf asks a CRI runtime for Config.Runtime. Version is asked with every status: the runtime may have been
// replaced while the kubelet ran on.
func RuntimeOf(client cri.RuntimeServiceClient) func(context.Context) (Runtime, error) {
	return func(ctx context.Context) (Runtime, error) {
		version, err := client.Version(ctx, &cri.VersionRequest{})
		if err != nil {
			return Runtime{}, err
		}
		status, err := client.Status(ctx, &cri.StatusRequest{})
		if err != nil {
			return Runtime{}, err
		}
		rt := Runtime{Name: version.GetRuntimeName(), Version: version.GetRuntimeVersion(), Problem: problem(status.GetStatus())}
		rt.SupplementalGroups = status.GetFeatures().GetSupplementalGroupsPolicy()
		for _, h := range status.GetRuntimeHandlers() {
			out := v1.NodeRuntimeHandler{Name: h.GetName()}
			if f := h.GetFeatures(); f != nil {
				out.Features = &v1.NodeRuntimeHandlerFeatures{RecursiveReadOnlyMounts: &f.RecursiveReadOnlyMounts, UserNamespaces: &f.UserNamespaces}
			}
			rt.Handlers = append(rt.Handlers, out)
		}
		slices.SortFunc(rt.Handlers, func(a, b v1.NodeRuntimeHandler) int { return strings.Compare(a.Name, b.Name) })
		return rt, nil
	}
}

// problem puts what the runtime lacks into the words of the Ready condition; a condition that is not reported counts
// as missing. Source: api.proto, RuntimeStatus.
func problem(s *cri.RuntimeStatus) string {
	var out []string
	for _, want := range []struct{ kind, text string }{{"RuntimeReady", "container runtime not ready"}, {"NetworkReady", "container runtime network not ready"}} {
		found := false
		for _, c := range s.GetConditions() {
			if c.GetType() != want.kind {
				continue
			}
			found = true
			if !c.GetStatus() {
				out = append(out, fmt.Sprintf("%s: %s=false reason:%s message:%s", want.text, want.kind, c.GetReason(), c.GetMessage()))
			}
		}
		if !found {
			out = append(out, fmt.Sprintf("%s: the runtime does not report %s", want.text, want.kind))
		}
	}
	return strings.Join(out, ", ")
}

// ImagesOf lists a CRI runtime's images for Config.Images.
func ImagesOf(client cri.ImageServiceClient) func(context.Context) ([]v1.ContainerImage, error) {
	return func(ctx context.Context) ([]v1.ContainerImage, error) {
		list, err := client.ListImages(ctx, &cri.ListImagesRequest{})
		if err != nil {
			return nil, err
		}
		out := make([]v1.ContainerImage, 0, len(list.GetImages()))
		for _, i := range list.GetImages() {
			// Digests first, and five names at most: upstream's form, and the list is in every heartbeat.
			names := append(append([]string{}, i.GetRepoDigests()...), i.GetRepoTags()...)
			out = append(out, v1.ContainerImage{Names: names[:min(len(names), 5)], SizeBytes: int64(i.GetSize())})
		}
		return out, nil
	}
}
