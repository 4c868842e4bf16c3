package api

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"worknode/fault"
)

// rig is a server on loopback with a real CRI peer in this process: one pod default/web with container app, run id1.
type rig struct {
	*Server
	base    string
	client  *http.Client // with a certificate of the client CA
	nobody  *http.Client // without
	rest    *rest.Config
	runtime *fakeRuntime
	dir     string
	log     string
	ca      *authority
}

func start(t *testing.T) *rig {
	t.Helper()
	r := &rig{dir: t.TempDir(), runtime: startRuntime(t), ca: newAuthority(t)}
	r.log = filepath.Join(r.dir, "0.log")
	r.ca.write(t, filepath.Join(r.dir, "ca.crt"))
	r.ca.issue(t, r.dir, "serving", "node")
	cert := r.ca.issue(t, r.dir, "client", "admin")
	file := func(s string) string { return filepath.Join(r.dir, s) }
	r.Server = New(Config{
		Addr: "127.0.0.1:0", CertFile: file("serving.crt"), KeyFile: file("serving.key"), ClientCAFile: file("ca.crt"),
		NodeName: "n1", RootDir: r.dir, Pods: onePod{r.log}, Runtime: r.runtime.client, Profiling: true, Debugging: true,
	})
	if err := r.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("server did not end within 10 s: %v", r.tasks.List())
		}
	})
	r.base = "https://" + r.Bound().String()
	pool := x509.NewCertPool()
	pool.AddCert(r.ca.cert)
	client := func(c ...tls.Certificate) *http.Client {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: c}}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr, Timeout: 20 * time.Second}
	}
	r.client, r.nobody = client(cert), client()
	r.rest = &rest.Config{Host: r.base, TLSClientConfig: rest.TLSClientConfig{CAFile: file("ca.crt"), CertFile: file("client.crt"), KeyFile: file("client.key")}}
	return r
}

// get returns status and body.
func (r *rig) get(t *testing.T, c *http.Client, path string) (int, string) {
	t.Helper()
	resp, err := c.Get(r.base + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

type onePod struct{ log string }

var webPod = &v1.Pod{
	ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "u1"},
	Spec:       v1.PodSpec{Containers: []v1.Container{{Name: "app"}, {Name: "late"}}},
	Status: v1.PodStatus{ContainerStatuses: []v1.ContainerStatus{
		{Name: "app", ContainerID: "worknode://id1", State: v1.ContainerState{Running: &v1.ContainerStateRunning{}}}}},
}

func (onePod) List() []*v1.Pod { return []*v1.Pod{webPod} }
func (onePod) Get(ns, name string, uid types.UID) (*v1.Pod, bool) {
	ok := ns == "default" && name == "web" && (uid == "" || uid == "u1")
	return webPod, ok
}
func (p onePod) ContainerID(_ *v1.Pod, container string, previous bool) (string, string, error) {
	if container == "late" || previous {
		return "", "", fault.New(fault.NotFound, "container %q has no such run", container)
	}
	return "id1", p.log, nil
}

// fakeRuntime is a small CRI server on a unix socket, with the streaming server that runtimes use.
type fakeRuntime struct {
	cri.UnimplementedRuntimeServiceServer
	client cri.RuntimeServiceClient
	stream streaming.Server
	events chan *cri.ContainerEventResponse

	mu     sync.Mutex
	exited bool
	asked  *cri.ExecRequest
}

func startRuntime(t *testing.T) *fakeRuntime {
	t.Helper()
	f := &fakeRuntime{events: make(chan *cri.ContainerEventResponse)}
	web := httptest.NewUnstartedServer(nil)
	cfg := streaming.DefaultConfig
	cfg.BaseURL = &url.URL{Scheme: "http", Host: web.Listener.Addr().String(), Path: "/"}
	var err error
	if f.stream, err = streaming.NewServer(cfg, echoRuntime{}); err != nil {
		t.Fatal(err)
	}
	web.Config.Handler = f.stream
	web.Start()
	t.Cleanup(web.Close)
	sock := filepath.Join(t.TempDir(), "cri.sock")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(srv, f)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	conn, err := grpc.NewClient("unix://"+sock, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	f.client = cri.NewRuntimeServiceClient(conn)
	return f
}

func (f *fakeRuntime) Exec(_ context.Context, r *cri.ExecRequest) (*cri.ExecResponse, error) {
	f.mu.Lock()
	f.asked = r
	f.mu.Unlock()
	return f.stream.GetExec(r)
}
func (f *fakeRuntime) Attach(_ context.Context, r *cri.AttachRequest) (*cri.AttachResponse, error) {
	return f.stream.GetAttach(r)
}
func (f *fakeRuntime) PortForward(_ context.Context, r *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
	return f.stream.GetPortForward(r)
}
func (f *fakeRuntime) ListPodSandbox(_ context.Context, r *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	if r.GetFilter().GetLabelSelector()["io.kubernetes.pod.uid"] != "u1" {
		return nil, status.Error(codes.InvalidArgument, "unexpected filter")
	}
	return &cri.ListPodSandboxResponse{Items: []*cri.PodSandbox{{Id: "box1"}}}, nil
}
func (f *fakeRuntime) ContainerStatus(_ context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	state := cri.ContainerState_CONTAINER_RUNNING
	if f.exited {
		state = cri.ContainerState_CONTAINER_EXITED
	}
	return &cri.ContainerStatusResponse{Status: &cri.ContainerStatus{Id: r.ContainerId, State: state}}, nil
}
func (f *fakeRuntime) GetContainerEvents(_ *cri.GetEventsRequest, s grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	for {
		select {
		case <-s.Context().Done():
			return nil
		case ev := <-f.events:
			if err := s.Send(ev); err != nil {
				return err
			}
		}
	}
}
func (f *fakeRuntime) ListPodSandboxStats(context.Context, *cri.ListPodSandboxStatsRequest) (*cri.ListPodSandboxStatsResponse, error) {
	u := func(n uint64) *cri.UInt64Value { return &cri.UInt64Value{Value: n} }
	return &cri.ListPodSandboxStatsResponse{Stats: []*cri.PodSandboxStats{{
		Attributes: &cri.PodSandboxAttributes{Id: "box1", Metadata: &cri.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u1"}},
		Linux: &cri.LinuxPodSandboxStats{
			Cpu: &cri.CpuUsage{UsageCoreNanoSeconds: u(2e9)}, Memory: &cri.MemoryUsage{WorkingSetBytes: u(4096)},
			Containers: []*cri.ContainerStats{{
				Attributes: &cri.ContainerAttributes{Metadata: &cri.ContainerMetadata{Name: "app"}},
				Cpu:        &cri.CpuUsage{UsageCoreNanoSeconds: u(1e9)}, Memory: &cri.MemoryUsage{WorkingSetBytes: u(2048)},
			}},
		},
	}}}, nil
}

// echoRuntime runs sh as cat and any other command as echo of itself, with its name on stderr.
type echoRuntime struct{}

func (echoRuntime) Exec(_ context.Context, _ string, cmd []string, in io.Reader, out, errw io.WriteCloser, tty bool, _ <-chan remotecommand.TerminalSize) error {
	if errw != nil {
		_, _ = io.WriteString(errw, cmd[0])
	}
	if cmd[0] == "sh" {
		_, err := io.Copy(out, in)
		return err
	}
	_, err := io.WriteString(out, cmd[len(cmd)-1])
	return err
}
func (echoRuntime) Attach(_ context.Context, id string, _ io.Reader, out, _ io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize) error {
	_, err := io.WriteString(out, "attached "+id)
	return err
}
func (echoRuntime) PortForward(_ context.Context, _ string, _ int32, s io.ReadWriteCloser) error {
	b := make([]byte, 4)
	if _, err := io.ReadFull(s, b); err != nil {
		return err
	}
	_, err := s.Write(append([]byte("pong "), b...))
	return err
}

// authority issues certificates for the tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	n    int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert: cert, key: key, n: 1}
}

func (a *authority) write(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// issue writes file.crt and file.key into dir.
func (a *authority) issue(t *testing.T, dir, file, user string) tls.Certificate {
	t.Helper()
	a.n++
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(a.n), Subject: pkix.Name{CommonName: user}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	crt, k := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
	for name, data := range map[string][]byte{".crt": crt, ".key": k} {
		if err := os.WriteFile(filepath.Join(dir, file+name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pair, err := tls.X509KeyPair(crt, k)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}
