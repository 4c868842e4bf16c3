package api

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// kubelet is a server that shows what reaches it; "/exec" and "/portForward" are taken over and echo bytes.
func kubelet(t *testing.T) Kubelet {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch {
		case strings.HasPrefix(req.URL.Path, "/containerLogs/default/web/broken"):
			http.Error(w, `container "broken" in pod "web" is waiting to start: ContainerCreating`, 400)
		case req.Header.Get("Upgrade") == "":
			fmt.Fprintf(w, "%s %s?%s", req.Method, req.URL.Path, req.URL.Query().Encode())
		default:
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", req.Header.Get("Upgrade"))
			w.Header().Set("X-Stream-Protocol-Version", "v4.channel.k8s.io")
			w.WriteHeader(http.StatusSwitchingProtocols)
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			fmt.Fprintf(conn, "%s?%s\n", req.URL.Path, req.URL.Query().Encode())
			io.Copy(conn, rw)
		}
	}))
	t.Cleanup(srv.Close)
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	return Kubelet{URL: u, Transport: &http.Transport{}}
}

const twoContainers = `{"metadata":{"name":"web","annotations":{"kubectl.kubernetes.io/default-container":"main"}},
 "spec":{"containers":[{"name":"side","image":"i:1"},{"name":"main","image":"i:1"},{"name":"broken","image":"i:1"}]}}`

func TestLogsComeFromTheKubelet(t *testing.T) {
	k := kubelet(t)
	w := start(t, func(c *Config) { c.Kubelet = k })
	w.must(201, "POST", pods, twoContainers)
	for query, want := range map[string]string{
		"":                                "GET /containerLogs/default/web/main?",
		"?container=side&follow=true":     "GET /containerLogs/default/web/side?follow=true",
		"?tailLines=3&timestamps=true":    "GET /containerLogs/default/web/main?tailLines=3&timestamps=true",
		"?previous=true&unknown=x":        "GET /containerLogs/default/web/main?previous=true",
		"?sinceTime=2026-01-01T00:00:00Z": "GET /containerLogs/default/web/main?sinceTime=2026-01-01T00%3A00%3A00Z",
	} {
		code, body, _ := w.do("GET", pods+"/web/log"+query, "")
		if code != 200 || string(body) != want {
			t.Errorf("%s: %d %s, want %s", query, code, body, want)
		}
	}
	waiting := w.must(400, "GET", pods+"/web/log?container=broken", "")
	w.want(waiting, `container "broken" in pod "web" is waiting to start: ContainerCreating`, "message")
	w.want(waiting, "BadRequest", "reason")
	w.want(w.must(400, "GET", pods+"/web/log?container=none", ""), "container none is not valid for pod web", "message")
	w.must(400, "GET", pods+"/web/log?tailLines=-1", "")
	w.must(404, "GET", pods+"/other/log", "")
}

func TestAContainerMustBeNamedIfThereAreSeveral(t *testing.T) {
	w := start(t, func(c *Config) { c.Kubelet = Kubelet{URL: &url.URL{}, Transport: &http.Transport{}} })
	w.must(201, "POST", pods, strings.Replace(twoContainers, "default-container", "other", 1))
	w.want(w.must(400, "GET", pods+"/web/log", ""), "a container name must be specified for pod web, choose one of: [side main broken]", "message")
}

// TestUpgradesAreCarriedByteForByte: exec over SPDY and WebSocket, and port-forward.
func TestUpgradesAreCarriedByteForByte(t *testing.T) {
	k := kubelet(t)
	w := start(t, func(c *Config) { c.Kubelet = k })
	w.must(201, "POST", pods, twoContainers)
	for _, test := range []struct{ method, path, upgrade, want string }{
		{"POST", "/web/exec?command=ls&command=-l&stdin=true&stdout=true&stderr=true", "SPDY/3.1", "/exec/default/web/main?command=ls&command=-l&error=1&input=1&output=1"},
		{"GET", "/web/exec?command=sh&stdin=true&stdout=true&stderr=true&tty=true&container=side", "websocket", "/exec/default/web/side?command=sh&input=1&output=1&tty=1"},
		{"POST", "/web/attach?stdout=true", "SPDY/3.1", "/attach/default/web/main?output=1"},
		{"POST", "/web/portforward?ports=80", "SPDY/3.1", "/portForward/default/web?ports=80"},
	} {
		u, _ := url.Parse(w.url)
		conn, err := tls.Dial("tcp", u.Host, &tls.Config{RootCAs: w.pool, Certificates: []tls.Certificate{w.clients}, NextProtos: []string{"http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "%s %s%s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", test.method, pods, test.path, test.upgrade)
		in := bufio.NewReader(conn)
		resp, err := http.ReadResponse(in, nil) //nolint:bodyclose // what follows is no body but the connection
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != 101 || resp.Header.Get("X-Stream-Protocol-Version") != "v4.channel.k8s.io" {
			t.Fatalf("%s: %s %v", test.path, resp.Status, resp.Header)
		}
		if line, _ := in.ReadString('\n'); line != test.want+"\n" {
			t.Errorf("%s: the kubelet saw %s, want %s", test.path, line, test.want)
		}
		bytes := "\x00\x01\xffhello\n"
		io.WriteString(conn, bytes)
		echo := make([]byte, len(bytes))
		if _, err := io.ReadFull(in, echo); err != nil || string(echo) != bytes {
			t.Errorf("echo %q, %v", echo, err)
		}
		conn.Close()
	}
	w.want(w.must(400, "POST", pods+"/web/exec?stdout=true", ""), "you must specify at least one command for the container", "message")
	w.must(400, "POST", pods+"/web/exec?command=x", "")
}

func TestNodeProxyReachesTheKubelet(t *testing.T) {
	k := kubelet(t)
	w := start(t, func(c *Config) { c.Kubelet = k })
	w.must(404, "GET", "/api/v1/nodes/node-1/proxy/stats/summary", "")
	w.must(201, "POST", "/api/v1/nodes", `{"metadata":{"name":"node-1"}}`)
	if _, body, _ := w.do("GET", "/api/v1/nodes/node-1/proxy/stats/summary?only_cpu=true", ""); string(body) != "GET /stats/summary?only_cpu=true" {
		t.Errorf("got %s", body)
	}
}

func TestAKubeletThatIsDownIsNamed(t *testing.T) {
	w := start(t, func(c *Config) {
		c.Kubelet = Kubelet{URL: &url.URL{Scheme: "http", Host: "127.0.0.1:1"}, Transport: &http.Transport{}}
	})
	w.must(201, "POST", pods, podJSON)
	if m := at(w.must(503, "GET", pods+"/web/log", ""), "message").(string); !strings.Contains(m, "kubelet at 127.0.0.1:1") {
		t.Error(m)
	}
}

func TestEvictionEndsAPodWithGrace(t *testing.T) {
	w := start(t)
	w.must(201, "POST", pods, podJSON)
	w.must(201, "POST", pods+"/web/eviction", `{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"web"},"deleteOptions":{"gracePeriodSeconds":3}}`)
	w.want(w.must(200, "GET", pods+"/web", ""), 3, "metadata", "deletionGracePeriodSeconds")
}

func state(s corev1.ContainerState, ready bool, restarts int32) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: "c", State: s, Ready: ready, RestartCount: restarts}
}
