package kube

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// wire forwards connections until it is cut: then it neither carries nor closes, as when a machine between lost its power.
type wire struct {
	net.Listener
	cut    atomic.Bool
	dialed atomic.Int64
}

func (w *wire) run(to string) {
	for {
		in, err := w.Accept()
		if err != nil {
			return
		}
		w.dialed.Add(1)
		out, err := net.Dial("tcp", to)
		if err != nil {
			_ = in.Close()
			continue
		}
		born := w.cut.Load()
		pump := func(to, from net.Conn) {
			buf := make([]byte, 32<<10)
			for {
				n, err := from.Read(buf)
				if w.cut.Load() != born {
					return // whatever was sent is lost
				}
				if _, e := to.Write(buf[:n]); err != nil || e != nil {
					_ = to.Close()
					return
				}
			}
		}
		go pump(in, out)
		go pump(out, in)
	}
}

// A connection that died without a word is replaced within seconds: requests go through, a watch is taken up again.
func TestDeadConnectionIsReplaced(t *testing.T) {
	var mu sync.Mutex
	watchers := 0
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.URL.Query().Get("watch") != "":
			mu.Lock()
			watchers++
			mu.Unlock()
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		case strings.HasSuffix(r.URL.Path, "/nodes"):
			_, _ = io.WriteString(w, `{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}`)
		default:
			_ = json.NewEncoder(w).Encode(&v1.Node{TypeMeta: metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: "n"}})
		}
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer func() { srv.CloseClientConnections(); srv.Close() }()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	between := &wire{Listener: lis}
	go between.run(srv.Listener.Addr().String())

	client, err := For(&rest.Config{Host: "https://" + lis.Addr().String(), TLSClientConfig: rest.TLSClientConfig{
		ServerName: "example.com", CAData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	synced := make(chan struct{}, 10)
	go Follow(ctx, client, Nodes, Where{}, func(d Delta) {
		if d.Op == Synced {
			synced <- struct{}{}
		}
	})
	<-synced
	if err := client.Get(ctx, Nodes, "", "n", &v1.Node{}); err != nil {
		t.Fatal(err)
	}
	before := between.dialed.Load()
	between.cut.Store(true)
	began := time.Now()
	one, cancel := context.WithTimeout(ctx, 40*time.Second)
	defer cancel()
	for client.Get(one, Nodes, "", "n", &v1.Node{}) != nil {
		if one.Err() != nil {
			t.Fatal("no request went through within 40 s")
		}
	}
	if took := time.Since(began); took > silence+patience+5*time.Second {
		t.Errorf("it took %v", took)
	}
	if between.dialed.Load() == before {
		t.Error("the dead connection was used again")
	}
	for deadline := time.After(20 * time.Second); ; {
		mu.Lock()
		n := watchers
		mu.Unlock()
		if n >= 2 {
			break
		}
		select {
		case <-deadline:
			t.Fatal("the watch was not taken up again")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Whoever opens a client may say how to connect, as into another network namespace.
func TestDialIsTheCallers(t *testing.T) {
	here := errors.New("dialled here")
	client, err := For(&rest.Config{Host: "https://192.0.2.1:6443", Dial: func(_ context.Context, _, addr string) (net.Conn, error) {
		return nil, fmt.Errorf("%s: %w", addr, here)
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Get(t.Context(), Nodes, "", "n", &v1.Node{}); !errors.Is(err, here) {
		t.Errorf("the client went its own way: %v", err)
	}
}
