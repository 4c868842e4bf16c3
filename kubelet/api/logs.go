package api

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"worknode/fault"
	"worknode/kubelet/api/crilog"
)

// getLogs prints a container's log. Parameters are those of PodLogOptions.
func (s *Server) getLogs(w http.ResponseWriter, r *http.Request) {
	o, previous, err := logOptions(r.URL.Query(), time.Now())
	if err != nil {
		fail(w, err)
		return
	}
	pod, name, err := s.containerOf(r)
	if err != nil {
		fail(w, err)
		return
	}
	id, path, err := s.Pods.ContainerID(pod, name, previous)
	if err != nil {
		fail(w, err)
		return
	}
	var changed, ended <-chan struct{}
	if o.Follow {
		var stop func()
		if changed, stop, err = s.logs.Watch(path); err != nil {
			fail(w, err)
			return
		}
		defer stop()
		ended, stop = s.exits.watch(id)
		defer stop()
	}
	out := &lateHeader{ResponseWriter: w}
	err = crilog.Read(r.Context(), out, path, o, changed, ended)
	switch {
	case err == nil:
		out.begin()
	case out.begun: // too late for a status; the connection's end tells the reader
		if !errors.Is(err, context.Canceled) {
			slog.Debug("log reader ended", "pod", pod.Name, "container", name, "err", err)
		}
		panic(http.ErrAbortHandler)
	default:
		fail(w, err)
	}
}

// lateHeader sends the header with the first bytes, or with the first flush: a follower of a silent container must
// not wait for its response, and a log that cannot be opened still gets a proper status.
type lateHeader struct {
	http.ResponseWriter
	begun bool
}

func (l *lateHeader) begin() {
	if !l.begun {
		l.begun = true
		l.Header().Set("Content-Type", "text/plain; charset=utf-8")
		l.WriteHeader(http.StatusOK)
	}
}

func (l *lateHeader) Write(p []byte) (int, error) {
	l.begin()
	return l.ResponseWriter.Write(p)
}

func (l *lateHeader) Flush() {
	l.begin()
	l.ResponseWriter.(http.Flusher).Flush()
}

// logOptions reads PodLogOptions from a query.
func logOptions(q url.Values, now time.Time) (o crilog.Options, previous bool, err error) {
	o = crilog.All()
	for name, into := range map[string]*bool{"follow": &o.Follow, "timestamps": &o.Timestamps, "previous": &previous} {
		if v := q.Get(name); v != "" {
			if *into, err = strconv.ParseBool(v); err != nil {
				return o, false, bad(name, v, "true or false")
			}
		}
	}
	since := int64(-1)
	for name, into := range map[string]*int64{"tailLines": &o.Tail, "limitBytes": &o.Limit, "sinceSeconds": &since} {
		if v := q.Get(name); v != "" {
			if *into, err = strconv.ParseInt(v, 10, 64); err != nil || *into < 0 || *into == 0 && name != "tailLines" {
				return o, false, bad(name, v, "a positive number")
			}
		}
	}
	if since >= 0 {
		o.Since = now.Add(-time.Duration(since) * time.Second)
	}
	if v := q.Get("sinceTime"); v != "" {
		if since >= 0 {
			return o, false, fault.New(fault.Invalid, "give sinceTime or sinceSeconds, not both")
		}
		if o.Since, err = time.Parse(time.RFC3339, v); err != nil {
			return o, false, bad("sinceTime", v, "a time like 2026-01-02T03:04:05Z")
		}
	}
	switch v := q.Get("stream"); v {
	case "", "All":
	case "Stdout":
		o.Stderr = false
	case "Stderr":
		o.Stdout = false
	default:
		return o, false, bad("stream", v, "All, Stdout or Stderr")
	}
	return o, previous, nil
}

func bad(name, value, want string) error {
	return fault.New(fault.Invalid, "parameter %s=%q is not %s", name, value, want)
}
