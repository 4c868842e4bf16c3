package api

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/streaming/pkg/httpstream"
	"worknode/fault"
)

func appendLog(t *testing.T, path string, lines ...string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, l := range lines {
		if _, err := fmt.Fprintf(f, "%s stdout F %s\n", time.Now().UTC().Format(time.RFC3339Nano), l); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOnlyBearersOfTheClientCAMayAsk(t *testing.T) {
	r := start(t)
	stranger := newAuthority(t).issue(t, t.TempDir(), "x", "admin")
	for _, path := range []string{"/healthz", "/pods", "/metrics", "/stats/summary", "/containerLogs/default/web/app", "/exec/default/web/app?command=x&output=1", "/nowhere", "/debug/pprof/"} {
		if code, body := r.get(t, r.nobody, path); code != http.StatusUnauthorized {
			t.Errorf("%s without certificate: %d %s", path, code, body)
		}
	}
	if code, body := r.get(t, r.client, "/healthz"); code != 200 || body != "ok" {
		t.Errorf("/healthz: %d %s", code, body)
	}
	tr := r.nobody.Transport.(*http.Transport).Clone()
	tr.TLSClientConfig.Certificates = append(tr.TLSClientConfig.Certificates, stranger)
	if resp, err := (&http.Client{Transport: tr}).Get(r.base + "/pods"); err == nil {
		_ = resp.Body.Close()
		t.Errorf("a certificate of a foreign CA was accepted: %s", resp.Status)
	}
}

func TestPathsThatAreNotThere(t *testing.T) {
	r := start(t)
	for path, want := range map[string]struct {
		code int
		says string
	}{
		"/nowhere":                                    {404, "no such path"},
		"/containerLogs/default/web":                  {404, "no such path"},
		"/containerLogs/default/db/app":               {404, "pod default/db is not on this node"},
		"/containerLogs/default/web/side":             {404, "container side is not in pod default/web"},
		"/containerLogs/default/web/late":             {404, "no such run"},
		"/containerLogs/default/web/app":              {404, "does not exist"}, // no log file yet
		"/containerLogs/default/web/app?follow=?":     {400, `follow="?"`},
		"/containerLogs/default/web/app?tailLines=-1": {400, "tailLines"},
		"/containerLogs/default/web/app?sinceTime=x":  {400, "sinceTime"},
		"/containerLogs/default/web/app?sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z": {400, "not both"},
		"/exec/default/web/app?command=x&output=1":                                     {400, "Upgrade"},
		"/exec/default/web/app?command=x":                                              {400, "at least one of stdin"},
		"/exec/default/web/other-uid/app?command=x&output=1":                           {404, "not on this node"},
	} {
		code, body := r.get(t, r.client, path)
		if code != want.code || !strings.Contains(body, want.says) {
			t.Errorf("%s: %d %q, want %d %q", path, code, body, want.code, want.says)
		}
	}
}

func TestPodsStatsAndMetrics(t *testing.T) {
	r := start(t)
	_, body := r.get(t, r.client, "/pods")
	var pods v1.PodList
	if err := json.Unmarshal([]byte(body), &pods); err != nil || len(pods.Items) != 1 || pods.Items[0].Name != "web" || pods.Kind != "PodList" {
		t.Fatalf("%v: %s", err, body)
	}
	_, body = r.get(t, r.client, "/stats/summary")
	var sum stats.Summary
	if err := json.Unmarshal([]byte(body), &sum); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	if *sum.Pods[0].Memory.WorkingSetBytes != 4096 || *sum.Pods[0].Containers[0].CPU.UsageCoreNanoSeconds != 1e9 {
		t.Fatalf("pods: %s", body)
	}
	if n := sum.Node; n.StartTime.IsZero() || *n.CPU.UsageCoreNanoSeconds == 0 || *n.Memory.WorkingSetBytes == 0 || *n.Fs.CapacityBytes == 0 {
		t.Fatalf("node: %s", body)
	}
	_, body = r.get(t, r.client, "/metrics/resource")
	for _, want := range []string{
		"pod_memory_working_set_bytes{namespace=\"default\",pod=\"web\"} 4096\n",
		"container_cpu_usage_seconds_total{container=\"app\",namespace=\"default\",pod=\"web\"} 1\n", "resource_scrape_error 0\n",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in\n%s", want, body)
		}
	}
	_, body = r.get(t, r.client, "/metrics")
	if !strings.Contains(body, "kubelet_running_containers{container_state=\"running\"} 1\n") || !strings.Contains(body, `kubelet_node_name{node="n1"} 1`) {
		t.Errorf("%s", body)
	}
	if code, _ := r.get(t, r.client, "/debug/pprof/goroutine?debug=1"); code != 200 {
		t.Errorf("pprof: %d", code)
	}
}

func TestLogs(t *testing.T) {
	r := start(t)
	appendLog(t, r.log, "one", "two", "three")
	for query, want := range map[string]string{"": "one\ntwo\nthree\n", "?tailLines=1": "three\n", "?limitBytes=6": "one\ntw", "?stream=Stderr": "", "?sinceSeconds=600": "one\ntwo\nthree\n"} {
		if code, body := r.get(t, r.client, "/containerLogs/default/web/app"+query); code != 200 || body != want {
			t.Errorf("%q: %d %q, want %q", query, code, body, want)
		}
	}
	if _, body := r.get(t, r.client, "/containerLogs/default/web/app?timestamps=true&tailLines=1"); !strings.HasPrefix(body, fmt.Sprint(time.Now().UTC().Year())) {
		t.Errorf("timestamps: %q", body)
	}
}

// follow opens a following log request and returns its lines.
func (r *rig) follow(t *testing.T) (*bufio.Reader, func()) {
	t.Helper()
	resp, err := r.client.Get(r.base + "/containerLogs/default/web/app?follow=true") //nolint:bodyclose // the returned func closes it
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v %v", resp, err)
	}
	return bufio.NewReader(resp.Body), func() { _ = resp.Body.Close() }
}

func TestFollowedLogEndsWithItsContainer(t *testing.T) {
	r := start(t)
	appendLog(t, r.log)
	in, stop := r.follow(t) // an empty log answers at once, or this would hang
	defer stop()
	expect := func(want string) {
		t.Helper()
		if got, err := in.ReadString('\n'); err != nil || got != want+"\n" {
			t.Fatalf("got %q %v, want %q", got, err, want)
		}
	}
	appendLog(t, r.log, "a")
	expect("a")
	if err := os.Rename(r.log, r.log+".20260101-000000"); err != nil {
		t.Fatal(err)
	}
	appendLog(t, r.log, "b")
	expect("b")
	appendLog(t, r.log, "last")
	begun := time.Now()
	r.runtime.events <- &cri.ContainerEventResponse{ContainerId: "id1", ContainerEventType: cri.ContainerEventType_CONTAINER_STOPPED_EVENT}
	expect("last")
	if rest, err := io.ReadAll(in); err != nil || len(rest) > 0 {
		t.Fatalf("%q %v", rest, err)
	}
	if d := time.Since(begun); d > auditEvery/2 {
		t.Fatalf("the end came after %v, by the audit and not by the event", d)
	}
}

func TestFollowOfAnEndedContainerEndsAtOnce(t *testing.T) {
	r := start(t)
	r.runtime.exited = true
	appendLog(t, r.log, "a")
	in, stop := r.follow(t)
	defer stop()
	if all, err := io.ReadAll(in); err != nil || string(all) != "a\n" {
		t.Fatalf("%q %v", all, err)
	}
}

func TestFollowersLeaveNothingBehind(t *testing.T) {
	r := start(t)
	appendLog(t, r.log, "a")
	for range 3 {
		in, stop := r.follow(t)
		if _, err := in.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		stop()
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		var names []string
		for _, task := range r.tasks.List() {
			if !strings.HasPrefix(task.Name, "serve ") {
				names = append(names, task.Name)
			}
		}
		if len(names) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still running: %v", names)
		}
		<-time.After(time.Millisecond)
	}
}

func TestExecOverSPDY(t *testing.T) {
	r := start(t)
	u, _ := url.Parse(r.base + "/exec/default/web/u1/app?command=sh&command=-c&input=1&output=1&error=1")
	x, err := remotecommand.NewSPDYExecutor(r.rest, "POST", u)
	if err != nil {
		t.Fatal(err)
	}
	input := strings.Repeat("0123456789abcdef", 64<<10) // 1 MiB both ways
	var out, errs bytes.Buffer
	err = x.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader(input), Stdout: &out, Stderr: &errs})
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != input || errs.String() != "sh" {
		t.Fatalf("%d of %d bytes back, stderr %q", out.Len(), len(input), errs.String())
	}
	if a := r.runtime.asked; a.ContainerId != "id1" || len(a.Cmd) != 2 || a.Cmd[1] != "-c" || !a.Stdin || a.Tty {
		t.Fatalf("the runtime was asked for %v", a)
	}
}

// The streaming library of runtimes speaks WebSocket up to v4; v5 is refused by it, so that clients fall back to SPDY.
func TestExecOverWebSocket(t *testing.T) {
	r := start(t)
	where := r.base + "/exec/default/web/app?command=" + url.QueryEscape("hello out") + "&stdout=true&stderr=true"
	x, err := remotecommand.NewWebSocketExecutorForProtocols(r.rest, "GET", where, "v4.channel.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	if err := x.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &out, Stderr: &errs}); err != nil {
		t.Fatal(err)
	}
	if out.String() != "hello out" || errs.String() != "hello out" {
		t.Fatalf("stdout %q stderr %q", out.String(), errs.String())
	}
	x, err = remotecommand.NewWebSocketExecutor(r.rest, "GET", where)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &out, Stderr: &errs}); !httpstream.IsUpgradeFailure(err) {
		t.Fatalf("kubectl falls back to SPDY on an upgrade failure only, this is %v", err)
	}
}

func TestAttachAndTerminalFlags(t *testing.T) {
	r := start(t)
	u, _ := url.Parse(r.base + "/attach/default/web/app?stdout=true&stderr=true&tty=true")
	x, err := remotecommand.NewSPDYExecutor(r.rest, "POST", u)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := x.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &out, Tty: true}); err != nil {
		t.Fatal(err)
	}
	if out.String() != "attached id1" {
		t.Fatalf("%q", out.String())
	}
}

func TestPortForward(t *testing.T) {
	r := start(t)
	transport, upgrader, err := spdy.RoundTripperFor(r.rest)
	if err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse(r.base + "/portForward/default/web")
	stop, ready := make(chan struct{}), make(chan struct{})
	fw, err := portforward.New(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", u), []string{"0:80"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- fw.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	ports, err := fw.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, "ping")
	got := make([]byte, 9)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "pong ping" {
		t.Fatalf("%q %v", got, err)
	}
	_ = c.Close()
	close(stop)
	<-done
}

func TestRotatedCertificatesAreUsedWithoutRestart(t *testing.T) {
	r := start(t)
	serial := func() string {
		tr := r.client.Transport.(*http.Transport).Clone()
		tr.DisableKeepAlives = true
		resp, err := (&http.Client{Transport: tr}).Get(r.base + "/healthz")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.TLS.PeerCertificates[0].SerialNumber.String()
	}
	before := serial()
	r.ca.issue(t, r.dir, "serving", "node")
	after := serial()
	if before == after {
		t.Fatal("the old certificate is still served")
	}
	if err := os.WriteFile(filepath.Join(r.dir, "serving.crt"), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if serial() != after {
		t.Fatal("a bad file must leave the last good certificate in use")
	}
}

func TestPortInUse(t *testing.T) {
	r := start(t)
	c := r.Config
	c.Addr = r.Bound().String()
	if err := New(c).Listen(); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), c.Addr) {
		t.Fatalf("%v", err)
	}
}

// Without a client CA and with a certificate that is kept in memory there is no file at all to look at.
func TestServerWithoutAnyFile(t *testing.T) {
	ca := newAuthority(t)
	cert := ca.issue(t, t.TempDir(), "serving", "node")
	s := New(Config{Addr: "127.0.0.1:0", NodeName: "n1", Certificate: func() *tls.Certificate { return &cert }, Pods: onePod{}})
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() { stop(); <-done }()
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}, Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	resp, err := client.Get("https://" + s.Bound().String() + "/pods")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a caller without credentials gets %s", resp.Status)
	}
}
