package api

import (
	"fmt"
	"mime"
	"net/http"
	"runtime"
	"strings"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"

	"worknode/standalone/store"
)

// groupVersion is one group of the API with what it serves.
type groupVersion struct {
	group, version string
}

func (g groupVersion) String() string {
	if g.group == "" {
		return g.version
	}
	return g.group + "/" + g.version
}

func (g groupVersion) path() string {
	if g.group == "" {
		return "/api/" + g.version
	}
	return "/apis/" + g.group + "/" + g.version
}

func groupVersions() []groupVersion {
	return []groupVersion{{"", "v1"}, {store.EndpointSlices.Group, "v1"}, {store.Leases.Group, "v1"}, {authorizationGroup, "v1"}, {authenticationGroup, "v1"}}
}

var objectVerbs = metav1.Verbs{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}

// resources lists what a group serves, subresources included.
func (g groupVersion) resources() []metav1.APIResource {
	var out []metav1.APIResource
	for _, r := range store.All {
		if r.Group != g.group || r.Version != g.version {
			continue
		}
		one := metav1.APIResource{
			Name: r.Name, SingularName: r.Singular, Namespaced: r.Namespaced, Kind: r.Kind,
			Verbs: objectVerbs, ShortNames: r.Short, Categories: r.Categories,
		}
		out = append(out, one)
		sub := func(name, group, version, kind string, verbs ...string) {
			out = append(out, metav1.APIResource{Name: r.Name + "/" + name, Namespaced: r.Namespaced, Group: group, Version: version, Kind: kind, Verbs: verbs})
		}
		if r.Status {
			sub("status", "", "", r.Kind, "get", "patch", "update")
		}
		switch r {
		case store.Pods:
			sub("attach", "", "", "PodAttachOptions", "create", "get")
			sub("binding", "", "", "Binding", "create")
			sub(debugSub, "", "", "Pod", "get", "patch", "update")
			sub("eviction", "policy", "v1", "Eviction", "create")
			sub("exec", "", "", "PodExecOptions", "create", "get")
			sub("log", "", "", "Pod", "get")
			sub("portforward", "", "", "PodPortForwardOptions", "create", "get")
		case store.Nodes:
			sub("proxy", "", "", "NodeProxyOptions", "create", "delete", "get", "patch", "update")
		}
	}
	for _, v := range reviews {
		if v.group == g.group {
			out = append(out, metav1.APIResource{Name: v.name, SingularName: strings.ToLower(v.kind), Namespaced: v.namespaced, Kind: v.kind, Verbs: metav1.Verbs{"create"}})
		}
	}
	return out
}

func (g groupVersion) apiGroup() metav1.APIGroup {
	v := metav1.GroupVersionForDiscovery{GroupVersion: g.String(), Version: g.version}
	return metav1.APIGroup{Name: g.group, Versions: []metav1.GroupVersionForDiscovery{v}, PreferredVersion: v}
}

func (s *Server) coreVersions(w http.ResponseWriter, req *http.Request) {
	if aggregated(w, req, true) {
		return
	}
	writeJSON(w, http.StatusOK, metav1.APIVersions{
		TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"},
		ServerAddressByClientCIDRs: []metav1.ServerAddressByClientCIDR{{ClientCIDR: "0.0.0.0/0", ServerAddress: req.Host}},
	})
}

func (s *Server) groups(w http.ResponseWriter, req *http.Request) {
	if aggregated(w, req, false) {
		return
	}
	list := metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}}
	for _, g := range groupVersions() {
		if g.group != "" {
			list.Groups = append(list.Groups, g.apiGroup())
		}
	}
	writeJSON(w, http.StatusOK, list)
}

func (s *Server) group(w http.ResponseWriter, _ *http.Request, g groupVersion) {
	one := g.apiGroup()
	one.TypeMeta = metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}
	writeJSON(w, http.StatusOK, one)
}

func (s *Server) groupResources(w http.ResponseWriter, _ *http.Request, g groupVersion) {
	writeJSON(w, http.StatusOK, metav1.APIResourceList{
		TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: g.String(), APIResources: g.resources(),
	})
}

// aggregated answers with all groups at once, if the client knows that form: kubectl then asks twice instead of once
// per group.
func aggregated(w http.ResponseWriter, req *http.Request, core bool) bool {
	asked := false
	for _, clause := range strings.Split(req.Header.Get("Accept"), ",") {
		_, params, err := mime.ParseMediaType(strings.TrimSpace(clause))
		asked = asked || err == nil && params["g"] == "apidiscovery.k8s.io" && params["v"] == "v2" && params["as"] == "APIGroupDiscoveryList"
	}
	if !asked {
		return false
	}
	list := apidiscoveryv2.APIGroupDiscoveryList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupDiscoveryList", APIVersion: "apidiscovery.k8s.io/v2"}}
	for _, g := range groupVersions() {
		if (g.group == "") != core {
			continue
		}
		list.Items = append(list.Items, apidiscoveryv2.APIGroupDiscovery{
			ObjectMeta: metav1.ObjectMeta{Name: g.group},
			Versions:   []apidiscoveryv2.APIVersionDiscovery{{Version: g.version, Resources: discovered(g), Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent}},
		})
	}
	w.Header().Set("Content-Type", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
	w.Header().Set("Vary", "Accept")
	_, _ = w.Write(mustJSON(&list))
	return true
}

func discovered(g groupVersion) []apidiscoveryv2.APIResourceDiscovery {
	var out []apidiscoveryv2.APIResourceDiscovery
	for _, r := range g.resources() {
		kind := &metav1.GroupVersionKind{Group: g.group, Version: g.version, Kind: r.Kind}
		if r.Version != "" {
			kind.Group, kind.Version = r.Group, r.Version
		}
		if parent, sub, is := strings.Cut(r.Name, "/"); is {
			last := &out[len(out)-1]
			if last.Resource == parent {
				last.Subresources = append(last.Subresources, apidiscoveryv2.APISubresourceDiscovery{Subresource: sub, ResponseKind: kind, Verbs: r.Verbs})
			}
			continue
		}
		scope := apidiscoveryv2.ScopeCluster
		if r.Namespaced {
			scope = apidiscoveryv2.ScopeNamespace
		}
		out = append(out, apidiscoveryv2.APIResourceDiscovery{
			Resource: r.Name, ResponseKind: kind, Scope: scope, SingularResource: r.SingularName, Verbs: r.Verbs, ShortNames: r.ShortNames, Categories: r.Categories,
		})
	}
	return out
}

func (s *Server) version(w http.ResponseWriter, _ *http.Request) {
	v := s.Version
	info := version.Info{GitVersion: v, GitCommit: s.Build, GitTreeState: "clean", GoVersion: runtime.Version(), Compiler: runtime.Compiler, Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if s.Build != "" {
		info.GitVersion += "+worknode." + strings.Map(semver, s.Build)
	}
	if _, err := fmt.Sscanf(v, "v%1s.%2s", &info.Major, &info.Minor); err != nil {
		info.Major, info.Minor = "1", ""
	}
	info.BuildDate = s.started.UTC().Format("2006-01-02T15:04:05Z")
	writeJSON(w, http.StatusOK, info)
}

// semver keeps the characters that a version's build part may have.
func semver(r rune) rune {
	if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' {
		return r
	}
	return '-'
}

func (s *Server) index(w http.ResponseWriter, _ *http.Request) {
	paths := []string{"/api", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"}
	for _, g := range groupVersions() {
		paths = append(paths, g.path())
	}
	writeJSON(w, http.StatusOK, metav1.RootPaths{Paths: paths})
}
