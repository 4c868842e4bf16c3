package kube_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"worknode/kube"
	"worknode/standalone/api"
	"worknode/standalone/store"
)

// trust is a chain of one certificate that nobody looks into.
var trust = [][]*x509.Certificate{{{}}}

// serve answers with the node's own API; whoever comes is let in.
func serve(t *testing.T, wrap func(http.Handler) http.Handler) *kube.Client {
	t.Helper()
	objects, err := store.Open("")
	if err != nil {
		t.Fatal(err)
	}
	server, err := api.New(api.Config{Store: objects, NodeName: "n", ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16"), Version: "v1.37.2"})
	if err != nil {
		t.Fatal(err)
	}
	trusted := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.TLS = &tls.ConnectionState{VerifiedChains: trust, PeerCertificates: trust[0]}
		server.ServeHTTP(w, r)
	})
	web := httptest.NewServer(wrap(trusted))
	t.Cleanup(web.Close)
	client, err := kube.For(&rest.Config{Host: web.URL})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// A watch that breaks is taken up where it ended: every change comes once, and no object twice for the same version.
func TestFollowSurvivesBrokenWatches(t *testing.T) {
	var watches atomic.Int32
	client := serve(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.Contains(r.URL.RawQuery, "watch=true") {
				next.ServeHTTP(w, r)
				return
			}
			if watches.Add(1)%3 == 0 {
				http.Error(w, "out of order", http.StatusServiceUnavailable)
				return
			}
			ctx, cut := context.WithTimeout(r.Context(), 3*time.Millisecond)
			defer cut()
			next.ServeHTTP(w, r.WithContext(ctx))
		})
	})
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	news := make(chan string, 1000)
	go kube.Follow(ctx, client, kube.ConfigMaps, kube.Where{Namespace: "default"}, func(d kube.Delta) {
		cm, _ := d.Object.(*v1.ConfigMap)
		switch d.Op {
		case kube.Synced:
			news <- "synced"
		case kube.Delete:
			news <- "delete " + cm.Name
		default:
			news <- "put " + cm.Name + "=" + cm.Data["n"]
		}
	})
	expect := func(want string) {
		t.Helper()
		select {
		case got := <-news:
			if got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		case <-ctx.Done():
			t.Fatalf("no news, want %q", want)
		}
	}
	expect("synced")
	for i := range 400 {
		cm := &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("m", i%4)}, Data: map[string]string{"n": fmt.Sprint(i)}}
		var err error
		if i < 4 {
			err = client.Create(ctx, kube.ConfigMaps, "default", cm, cm)
		} else {
			err = client.Update(ctx, kube.ConfigMaps, "default", cm.Name, cm, cm)
		}
		if err != nil {
			t.Fatal(err)
		}
		expect(fmt.Sprintf("put m%d=%d", i%4, i))
	}
	if err := client.Delete(ctx, kube.ConfigMaps, "default", "m0", nil); err != nil {
		t.Fatal(err)
	}
	expect("delete m0")
	if watches.Load() < 3 {
		t.Errorf("only %d watches: the test broke none", watches.Load())
	}
}
