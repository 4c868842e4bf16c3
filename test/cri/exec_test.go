package cri

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/kernel/netns"
)

func TestExecSync(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	c := config("main", "sleep 1000")
	c.Envs = []*cri.KeyValue{{Key: "MINE", Value: []byte("a b=c")}}
	id := n.run(pod, box, c)
	r, err := n.exec(id, 0, "sh", "-c", "echo out $MINE; echo err >&2; exit 3")
	if err != nil || string(r.Stdout) != "out a b=c\n" || string(r.Stderr) != "err\n" || r.ExitCode != 3 {
		t.Errorf("exec: %v %v", r, err)
	}
	if _, err := n.exec(id, 0, "no-such"); err == nil || !strings.Contains(err.Error(), "no-such") {
		t.Errorf("absent program: %v", err)
	}
	start := time.Now()
	_, err = n.exec(id, 1, "sh", "-c", "sleep 777 & (sleep 777); wait")
	if status.Code(err) != codes.DeadlineExceeded || time.Since(start) > 3*time.Second {
		t.Errorf("timeout: %v after %s", err, time.Since(start))
	}
	if out := n.sh(id, "ps"); strings.Contains(out, "777") {
		t.Errorf("processes of a timed out exec live on:\n%s", out)
	}
	// A child that keeps the pipe open must not hold up the answer for ever; what it holds is cut off after ten seconds.
	big, err := n.exec(id, 20, "sh", "-c", "yes | head -c 20000000")
	if err != nil || len(big.Stdout) != 16<<20 {
		t.Errorf("output is capped at 16 MiB: %d bytes, %v", len(big.GetStdout()), err)
	}
	var all time.Duration
	const rounds = 50
	for range rounds {
		start := time.Now()
		if r, err := n.exec(id, 5, "true"); err != nil || r.ExitCode != 0 {
			t.Fatal(r, err)
		}
		all += time.Since(start)
	}
	t.Logf("exec of true: %s on average", all/rounds)
}

// reachable makes a URL of the node's streaming server usable from the test's own network namespace: client-go's
// upgraders dial by themselves, so a listener here carries each connection over.
func (n *node) reachable(t *testing.T, address string) *url.URL {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	host := u.Host
	go func() {
		for {
			here, err := l.Accept()
			if err != nil {
				return
			}
			var there net.Conn
			if netns.Do(n.netns(), func() (err error) { there, err = net.Dial("tcp", host); return err }) != nil {
				here.Close()
				continue
			}
			go func() { io.Copy(there, here); there.Close() }()
			go func() { io.Copy(here, there); here.Close() }()
		}
	}()
	u.Host = l.Addr().String()
	return u
}

func (n *node) executor(t *testing.T, address string, spdyProtocol bool) remotecommand.Executor {
	t.Helper()
	u := n.reachable(t, address)
	var e remotecommand.Executor
	var err error
	if spdyProtocol {
		e, err = remotecommand.NewSPDYExecutor(&rest.Config{}, "POST", u)
	} else {
		e, err = remotecommand.NewWebSocketExecutor(&rest.Config{}, "GET", u.String())
	}
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestStreamingExec(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	id := n.run(pod, box, config("main", "sleep 1000"))
	for name, spdyProtocol := range map[string]bool{"spdy": true, "websocket": false} {
		r, err := n.cri.Exec(n.ctx(), &cri.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "cat; echo err >&2; exit 5"}, Stdin: true, Stdout: true, Stderr: true})
		if err != nil {
			t.Fatal(err)
		}
		var out, errs bytes.Buffer
		err = n.executor(t, r.Url, spdyProtocol).StreamWithContext(n.ctx(), remotecommand.StreamOptions{Stdin: strings.NewReader("to the end\n"), Stdout: &out, Stderr: &errs})
		if err == nil || !strings.Contains(err.Error(), "exit code 5") || out.String() != "to the end\n" || errs.String() != "err\n" {
			t.Errorf("%s: %v, out %q, err %q", name, err, out.String(), errs.String())
		}
	}
}

type oneSize struct{ left int }

func (s *oneSize) Next() *remotecommand.TerminalSize {
	if s.left--; s.left < 0 {
		return nil
	}
	return &remotecommand.TerminalSize{Width: 101, Height: 37}
}

func TestStreamingTerminal(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	id := n.run(pod, box, config("main", "sleep 1000"))
	r, err := n.cri.Exec(n.ctx(), &cri.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "tty; until stty size | grep '37 101'; do sleep 0.02; done; read line; echo got $line"}, Stdin: true, Stdout: true, Tty: true})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	in, typing := io.Pipe()
	go typing.Write([]byte("hello\n"))
	err = n.executor(t, r.Url, true).StreamWithContext(n.ctx(), remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true, TerminalSizeQueue: &oneSize{1}})
	if err != nil || !strings.Contains(out.String(), "37 101") || !strings.Contains(out.String(), "got hello") || !strings.Contains(out.String(), "/dev/pts/") {
		t.Errorf("%v, out %q", err, out.String())
	}
}

func TestAttach(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	c := config("main", "while read line; do echo got $line; done; exit 4")
	c.Stdin, c.StdinOnce = true, true
	id := n.run(pod, box, c)
	r, err := n.cri.Attach(n.ctx(), &cri.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := n.executor(t, r.Url, true).StreamWithContext(n.ctx(), remotecommand.StreamOptions{Stdin: strings.NewReader("one\ntwo\n"), Stdout: &out, Stderr: io.Discard}); err != nil {
		t.Error(err)
	}
	if s := n.exited(id); s.ExitCode != 4 {
		t.Errorf("stdin_once: the container should have seen the end of its input: %v", s)
	}
	if out.String() != "got one\ngot two\n" {
		t.Errorf("attached output %q", out.String())
	}
}

func TestPortForward(t *testing.T) {
	n := newNode(t)
	box := n.podConfig()
	pod := n.runPod(box)
	id := n.run(pod, box, config("web", "httpd -f -p 127.0.0.1:80 -h /www"))
	n.until("the server to listen", func() bool { // a refused connection ends client-go's whole forwarding
		r, err := n.exec(id, 5, "wget", "-q", "-O", "-", "http://127.0.0.1/index.html")
		return err == nil && r.ExitCode == 0
	})
	r, err := n.cri.PortForward(n.ctx(), &cri.PortForwardRequest{PodSandboxId: pod})
	if err != nil {
		t.Fatal(err)
	}
	u := n.reachable(t, r.Url)
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", u)
	stop, ready := make(chan struct{}), make(chan struct{})
	forward, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:80"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- forward.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	ports, err := forward.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	n.until("page through the forwarded port", func() bool {
		reply, err := http.Get("http://127.0.0.1:" + strings.TrimSpace(itoa(int(ports[0].Local))) + "/index.html")
		if err != nil {
			return false
		}
		defer reply.Body.Close()
		text, _ := io.ReadAll(reply.Body)
		return string(text) == "hello from the pod\n"
	})
	close(stop)
	<-done
}
