package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/runtime/image"
)

// What CRI has no words for: progress, import, export and the disk's use. Root reaches it over the debug socket, and
// `worknode images` is its client. It promises nothing to others: client and server are of one build.

const (
	maxOrder     = 64 << 10 // bytes of a request's JSON
	progressStep = 200 * time.Millisecond
)

// pullOrder asks for a pull.
type pullOrder struct {
	Ref  string          `json:"ref"`
	Auth *cri.AuthConfig `json:"auth"`
}

// report is one line of an answer: how far it is, or how it ended.
type report struct {
	Layers []image.LayerProgress `json:"layers,omitempty"`
	Image  *image.Image          `json:"image,omitempty"`
	Error  string                `json:"error,omitempty"`
	Kind   string                `json:"kind,omitempty"` // of the error
}

func (l *loop) control(mux *http.ServeMux) {
	mux.HandleFunc("POST /images/pull", l.controlPull)
	mux.HandleFunc("POST /images/import", func(w http.ResponseWriter, r *http.Request) {
		list, err := l.images.Import(r.Context(), r.Body, r.URL.Query().Get("name"))
		answer(w, list, err)
	})
	mux.HandleFunc("GET /images/export", l.controlExport)
	mux.HandleFunc("GET /images/disk", func(w http.ResponseWriter, _ *http.Request) { answer(w, l.images.Disk(), nil) })
	mux.HandleFunc("POST /images/verify", func(w http.ResponseWriter, r *http.Request) {
		list, err := l.images.Verify(r.Context(), r.URL.Query()["ref"])
		answer(w, list, err)
	})
	mux.HandleFunc("POST /images/prune", func(w http.ResponseWriter, r *http.Request) {
		list, err := l.images.Prune(r.URL.Query().Get("dry") != "")
		answer(w, list, err)
	})
}

// answer writes a value, or an error with its kind.
func answer(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		v = report{Error: err.Error(), Kind: fault.Of(err).String()}
	}
	_ = json.NewEncoder(w).Encode(v) // whoever asked has gone
}

func (l *loop) controlPull(w http.ResponseWriter, r *http.Request) {
	var order pullOrder
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxOrder)).Decode(&order); err != nil {
		answer(w, nil, fault.New(fault.Invalid, "order of a pull: %w", err))
		return
	}
	ctx, stop := context.WithCancel(r.Context())
	defer stop()
	seen := make(chan *image.Progress, 1)
	type outcome struct {
		im  image.Image
		err error
	}
	ended := make(chan outcome, 1)
	l.tasks.Go("pull for a person", func(context.Context) {
		im, err := l.pullImage(ctx, order.Ref, order.Auth, func(p *image.Progress) { seen <- p })
		ended <- outcome{im, err}
	})
	w.Header().Set("Content-Type", "application/x-ndjson")
	lines, flush := json.NewEncoder(w), http.NewResponseController(w)
	tick := time.NewTicker(progressStep)
	defer tick.Stop()
	var progress *image.Progress
	for {
		var line report
		select {
		case p := <-seen:
			progress = p
			continue
		case <-tick.C:
			if progress == nil {
				continue
			}
			line.Layers = progress.Layers()
		case end := <-ended:
			line.Image = &end.im
			if end.err != nil {
				line = report{Error: end.err.Error(), Kind: fault.Of(end.err).String()}
			}
			if progress != nil {
				line.Layers = progress.Layers()
			}
			_ = lines.Encode(line)
			return
		}
		if lines.Encode(line) != nil || flush.Flush() != nil {
			return // the person left, and with the context the pull ends, unless others wait for it
		}
	}
}

func (l *loop) controlExport(w http.ResponseWriter, r *http.Request) {
	refs := r.URL.Query()["ref"]
	for _, ref := range refs {
		if _, ok := l.images.Get(ref); !ok { // while there is a status to answer with
			answer(w, nil, fault.New(fault.NotFound, "image %s: it is not on this node", ref))
			return
		}
	}
	w.Header().Set("Content-Type", "application/x-tar")
	w.Header().Set("Trailer", "Worknode-Ids, Worknode-Error")
	ids, err := l.images.Export(r.Context(), w, refs)
	if err != nil && !errors.Is(err, context.Canceled) {
		w.Header().Set("Worknode-Error", strings.ReplaceAll(err.Error(), "\n", " "))
	}
	w.Header().Set("Worknode-Ids", strings.Join(ids, " "))
}
