package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
)

// health serves grpc.health.v1.Health/Check over HTTP/2 without TLS. The one message it knows is a single enum field
// (1 SERVING, 2 NOT_SERVING), so it is spelled out here instead of carrying a gRPC library in the test's image.
// Source: gRPC over HTTP2 protocol description, length-prefixed messages and trailers; health.proto.
func health(ctx context.Context, port string) {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /grpc.health.v1.Health/Check", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		status := byte(1)
		if _, err := os.Stat("/tmp/notready"); err == nil {
			status = 2
		}
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		w.Write([]byte{0, 0, 0, 0, 2, 0x08, status})
		w.Header().Set("Grpc-Status", "0")
	})
	plain := new(http.Protocols)
	plain.SetUnencryptedHTTP2(true)
	server := &http.Server{Addr: ":" + port, Handler: mux, Protocols: plain}
	context.AfterFunc(ctx, func() { server.Shutdown(context.Background()) })
	fmt.Println("health on", port)
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
