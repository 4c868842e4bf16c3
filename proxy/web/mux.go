package web

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/pprof"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"sigs.k8s.io/yaml"

	"worknode/version"
)

// Pages is what the server of metrics shows besides those.
type Pages struct {
	Metrics *Metrics
	Mode    func() string            // as the configuration has it
	Configz func() any               // the configuration
	Flags   func() map[string]string // nil: /flagz is off
	Statusz bool
	Profile bool                         // /debug/pprof, and /debug/flags/v
	Verbose func(string) (string, error) // sets --v

	checked atomic.Uint64 // /healthz
}

// Handler serves the pages of port 10249.
func (p *Pages) Handler() http.Handler {
	mux := http.NewServeMux()
	paths := []string{}
	handle := func(path string, h http.HandlerFunc) {
		paths = append(paths, path)
		mux.HandleFunc(path, h)
	}
	handle("/healthz", p.healthz)
	handle("/healthz/ping", p.healthz)
	handle("/metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		p.Metrics.Write(w)
	})
	handle("/metrics/slis", p.slis)
	handle("/proxyMode", func(w http.ResponseWriter, _ *http.Request) { plain(w, http.StatusOK, p.Mode()) })
	handle("/configz", func(w http.ResponseWriter, _ *http.Request) {
		body, err := json.Marshal(map[string]any{"kubeproxy.config.k8s.io": p.Configz()})
		if err != nil {
			http.Error(w, fmt.Sprintf("error marshaling json: %v", err), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = w.Write(body)
	})
	if p.Profile {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
		mux.HandleFunc("/debug/flags/v", p.verbosity)
	}
	if p.Flags != nil {
		handle("/flagz", p.flagz)
	}
	if p.Statusz {
		listed := folders(paths)
		mux.HandleFunc("/statusz", func(w http.ResponseWriter, r *http.Request) { statusz(w, r, listed) })
	}
	return mux
}

// plain answers with text. Servers for machines say what it is, and that nothing else may be guessed.
func plain(w http.ResponseWriter, code int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, body)
}

// healthz is that of the metrics server: it answers, so it is well. Load balancers ask the other one.
func (p *Pages) healthz(w http.ResponseWriter, r *http.Request) {
	p.checked.Add(1)
	if _, verbose := r.URL.Query()["verbose"]; verbose && r.URL.Path == "/healthz" {
		plain(w, http.StatusOK, "[+]ping ok\nhealthz check passed\n")
		return
	}
	plain(w, http.StatusOK, "ok")
}

func (p *Pages) slis(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodDelete {
		p.checked.Store(0)
		plain(w, http.StatusOK, "metrics reset\n")
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	t := newText(w)
	defer t.Flush()
	if n := p.checked.Load(); n > 0 {
		t.head("gauge", "kubernetes_healthcheck", "[STABLE] This metric records the result of a single healthcheck.")
		t.sample("kubernetes_healthcheck", `name="ping",type="healthz"`, 1)
		t.head("counter", "kubernetes_healthchecks_total", "[STABLE] This metric records the results of all healthcheck.")
		t.sample("kubernetes_healthchecks_total", `name="ping",status="success",type="healthz"`, float64(n))
	}
	t.one("gauge", "process_start_time_seconds", "[ALPHA] Start time of the process since unix epoch in seconds.", unix(started))
}

func (p *Pages) verbosity(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPut {
		plain(w, http.StatusNotAcceptable, "unsupported http method\n")
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 64))
	if err != nil {
		plain(w, http.StatusBadRequest, "error reading request body: "+err.Error()+"\n")
		return
	}
	said, err := p.Verbose(strings.TrimSpace(string(body)))
	if err != nil {
		plain(w, http.StatusBadRequest, err.Error()+"\n")
		return
	}
	plain(w, http.StatusOK, said+"\n")
}

const warning = "\nkube-proxy %s\nWarning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.\n"

func (p *Pages) flagz(w http.ResponseWriter, r *http.Request) {
	flags := p.Flags()
	object := map[string]any{"kind": "Flagz", "metadata": map[string]any{"name": "kube-proxy"}, "flags": flags}
	negotiate(w, r, "Flagz", object, func(t io.Writer) {
		fmt.Fprintf(t, warning, "flagz")
		for _, name := range slices.Sorted(maps.Keys(flags)) {
			fmt.Fprintf(t, "%s=%s\n", name, flags[name])
		}
	})
}

func statusz(w http.ResponseWriter, r *http.Request, paths []string) {
	up := int64(time.Since(started).Seconds())
	binary := strings.TrimPrefix(version.Kubernetes, "v")
	emulation := binary[:strings.LastIndexByte(binary, '.')]
	object := map[string]any{"kind": "Statusz", "metadata": map[string]any{"name": "kube-proxy"}, "startTime": started.UTC().Format(time.RFC3339),
		"uptimeSeconds": up, "goVersion": runtime.Version(), "binaryVersion": binary, "emulationVersion": emulation, "paths": paths}
	negotiate(w, r, "Statusz", object, func(t io.Writer) {
		fmt.Fprintf(t, warning, "statusz")
		fmt.Fprintf(t, "\nStarted: %s\nUp: %d hr %02d min %02d sec\nGo version: %s\nBinary version: %s\nEmulation version: %s\nPaths: %s\n",
			started.Format(time.UnixDate), up/3600, up/60%60, up%60, runtime.Version(), binary, emulation, strings.Join(paths, " "))
	})
}

// negotiate answers with text, or with the object if the asker wants that kind of config.k8s.io: its Accept then says
// application/json;v=v1beta1;g=config.k8s.io;as=Statusz.
func negotiate(w http.ResponseWriter, r *http.Request, kind string, object map[string]any, write func(io.Writer)) {
	for accept := range strings.SplitSeq(r.Header.Get("Accept"), ",") {
		media, params := parameters(accept)
		switch media {
		case "", "*/*", "text/*", "text/plain":
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			write(w)
			return
		case "application/json", "application/yaml":
			v := params["v"]
			if params["g"] != "config.k8s.io" || params["as"] != kind || v != "v1beta1" && v != "v1alpha1" {
				continue
			}
			object["apiVersion"] = "config.k8s.io/" + v
			if v == "v1alpha1" {
				w.Header().Set("Warning", `299 - "This version of the `+strings.ToLower(kind)+` endpoint is deprecated. Please use a newer version."`)
			}
			body, err := json.Marshal(object)
			if media == "application/yaml" && err == nil {
				body, err = yaml.JSONToYAML(body)
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			w.Header().Set("Content-Type", media)
			_, _ = w.Write(body)
			return
		}
	}
	plain(w, http.StatusNotAcceptable, "only the following media types are accepted: text/plain, and application/json or application/yaml with v=v1beta1;g=config.k8s.io;as="+kind+"\n")
}

func parameters(accept string) (media string, params map[string]string) {
	parts := strings.Split(accept, ";")
	params = map[string]string{}
	for _, p := range parts[1:] {
		name, value, _ := strings.Cut(strings.TrimSpace(p), "=")
		params[name] = value
	}
	return strings.TrimSpace(parts[0]), params
}

// folders are the first parts of paths, each once.
func folders(paths []string) []string {
	var out []string
	for _, p := range paths {
		out = append(out, "/"+strings.Split(p, "/")[1])
	}
	slices.Sort(out)
	return slices.Compact(out)
}
