package stream

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// legible passes on what the streaming library can serve, and refuses a WebSocket that speaks only newer subprotocols
// (v5.channel.k8s.io, and port-forward tunnelled as SPDY) with a plain answer. Clients that offer those fall back to
// SPDY on any refused upgrade (KEP-4006); the library would refuse too, but logs an error for each of them.
func legible(inner http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if offered := offers(r); len(offered) > 0 && !slices.ContainsFunc(offered, served) {
			http.Error(w, fmt.Sprintf("websocket subprotocols %s are not served here, use v4.channel.k8s.io or SPDY", strings.Join(offered, ", ")), http.StatusBadRequest)
			return
		}
		inner.ServeHTTP(w, r)
	})
}

// offers lists the subprotocols of a WebSocket upgrade; one that names none leaves the choice to the server.
func offers(r *http.Request) (all []string) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return nil
	}
	for _, line := range r.Header.Values("Sec-WebSocket-Protocol") {
		for name := range strings.SplitSeq(line, ",") {
			all = append(all, strings.TrimSpace(name))
		}
	}
	return all
}

func served(protocol string) bool {
	switch protocol {
	case "", "channel.k8s.io", "base64.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "portforward.k8s.io":
		return true
	}
	return false
}
