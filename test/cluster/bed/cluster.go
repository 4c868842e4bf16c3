package bed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"worknode/kube"
	"worknode/test/harness"
)

// The addresses of every bed; each has its own network, so they never meet.
const (
	CoreIP      = "10.77.0.1"
	ServiceCIDR = "10.96.0.0/16"
	APIService  = "10.96.0.1" // of Service kubernetes
	DNSService  = "10.96.0.10"
	PodCIDR     = "10.88.0.0/16"
	Domain      = "cluster.local"
	Server      = "https://" + CoreIP + ":6443"
)

// Config is what a test wants of its control plane beside the usual.
type Config struct {
	APIServer         []string // further flags
	ControllerManager []string
}

// Cluster is a control plane that runs.
type Cluster struct {
	Dir      string // all of its state
	CA       *Authority
	API      *Process
	Etcd     *Process
	Manager  *Process
	Schedule *Process
	Kube     *kube.Client // as an administrator

	core  *space
	group group
	next  int // number of the next node
	pods  *follower
}

// Up starts a control plane whose state is in dir and whose processes are in the cgroup /bed-NAME. It answers when Up
// returns. The caller ends it with Down, also after an error.
func Up(dir, name string, config Config) (*Cluster, error) {
	c := &Cluster{Dir: dir, group: group("/bed-" + name), next: 1}
	if len(c.group.members()) > 0 {
		return c, fmt.Errorf("a bed named %s runs already: end it first", name)
	}
	if err := os.MkdirAll(dir+"/pki", 0o700); err != nil {
		return c, err
	}
	if err := c.certificates(); err != nil {
		return c, err
	}
	var err error
	if c.core, err = newSpace(dir+"/core", c.group+"/core"); err != nil {
		return c, err
	}
	if err := c.core.furnishCore(); err != nil {
		return c, fmt.Errorf("network of the control plane: %w", err)
	}
	if err := os.WriteFile(dir+"/audit.yaml", []byte(auditPolicy), 0o644); err != nil {
		return c, err
	}
	if c.Kube, err = c.client("admin"); err != nil {
		return c, err
	}
	return c, c.start(config)
}

// Down ends everything of the bed, its nodes too, and removes its folder.
func (c *Cluster) Down() error { return Down(c.Dir, strings.TrimPrefix(string(c.group), "/bed-")) }

// Down ends the bed of this name wherever it was started, and removes its folder.
func Down(dir, name string) error {
	group("/bed-" + name).end()
	return os.RemoveAll(dir)
}

// sweep ends the beds of tests that died before they could.
func sweep() {
	all, _ := filepath.Glob(group("/bed-*").accounting())
	for _, dir := range all {
		name := strings.TrimPrefix(filepath.Base(dir), "bed-")
		if pid, err := strconv.Atoi(name); err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			group("/bed-" + name).end()
		}
	}
}

// Program is upstream's program of this name, as scripts/kubernetes built it.
func Program(name string) string { return filepath.Join(harness.Top(), ".cache/cluster/bin", name) }

func (c *Cluster) certificates() error {
	var err error
	if c.CA, err = OpenAuthority(c.Dir+"/pki", "ca"); err != nil {
		return err
	}
	front, err := OpenAuthority(c.Dir+"/pki", "front-proxy-ca")
	if err != nil {
		return err
	}
	if err := accountKeys(c.CA.Key("sa"), c.CA.Dir+"/sa.pub"); err != nil {
		return err
	}
	if err := front.Issue("front-proxy", Subject{Name: "front-proxy"}); err != nil {
		return err
	}
	for file, who := range map[string]Subject{
		"apiserver": {Name: "kube-apiserver", Hosts: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc." + Domain, "localhost", "127.0.0.1", CoreIP, APIService}},
		"apiserver-kubelet": {Name: "kube-apiserver-kubelet-client", Groups: []string{"system:masters"}},
	} {
		if err := c.CA.Issue(file, who); err != nil {
			return err
		}
	}
	for user, who := range map[string]Subject{
		"admin":      {Name: "admin", Groups: []string{"system:masters"}},
		"manager":    {Name: "system:kube-controller-manager"},
		"scheduler":  {Name: "system:kube-scheduler"},
		"kube-proxy": {Name: "system:kube-proxy"},
	} {
		if _, err := c.User(user, who); err != nil {
			return err
		}
	}
	return nil
}

// User makes a client certificate and a kubeconfig with it, and returns the kubeconfig's file.
func (c *Cluster) User(file string, who Subject) (string, error) {
	if err := c.CA.Issue(file, who); err != nil {
		return "", err
	}
	return c.Kubeconfig(file), c.CA.Kubeconfig(c.Kubeconfig(file), Server, file)
}

// Kubeconfig is the file of a user that User made; "admin" is there from the start. It serves programs inside the bed.
func (c *Cluster) Kubeconfig(user string) string { return c.Dir + "/" + user + ".kubeconfig" }

// Rest is how Go code outside the bed reaches the API server as a user that User made.
func (c *Cluster) Rest(user string) *rest.Config {
	return &rest.Config{
		Host: Server, UserAgent: "bed", Dial: c.core.Dial,
		TLSClientConfig: rest.TLSClientConfig{CAFile: c.CA.Cert("ca"), CertFile: c.CA.Cert(user), KeyFile: c.CA.Key(user)},
	}
}

func (c *Cluster) client(user string) (*kube.Client, error) { return kube.For(c.Rest(user)) }

// Dial connects to the control plane from its own network, where every node and pod can be reached too.
func (c *Cluster) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return c.core.Dial(ctx, network, address)
}

// Run runs a command in the control plane's network.
func (c *Cluster) Run(ctx context.Context, argv ...string) (string, error) {
	return c.core.Run(ctx, argv...)
}

// start runs the four programs.
func (c *Cluster) start(config Config) error {
	var err error
	pki := c.CA
	if c.Etcd, err = c.core.start("etcd", nil, etcdCommand("/run/etcd")...); err != nil {
		return err
	}
	if c.API, err = c.core.start("kube-apiserver", nil, append(apiserverCommand(c, pki), config.APIServer...)...); err != nil {
		return err
	}
	if err := c.wait(2*time.Minute, "the API server to be ready", func(ctx context.Context) error {
		return c.Kube.REST(kube.Pods).Get().AbsPath("/readyz").Do(ctx).Error()
	}); err != nil {
		return err
	}
	if c.Manager, err = c.core.start("kube-controller-manager", nil, append(managerCommand(c, pki), config.ControllerManager...)...); err != nil {
		return err
	}
	if c.Schedule, err = c.core.start("kube-scheduler", nil, schedulerCommand(c)...); err != nil {
		return err
	}
	// The service account admission refuses pods until this is there.
	return c.wait(time.Minute, "the default service account", func(ctx context.Context) error {
		return c.Kube.REST(kube.Pods).Get().Namespace("default").Resource("serviceaccounts").Name("default").Do(ctx).Error()
	})
}

// wait asks until there is no error, and says which program ended, if one did.
func (c *Cluster) wait(within time.Duration, what string, ask func(context.Context) error) error {
	var err error
	for deadline := time.Now().Add(harness.Slow(within)); time.Now().Before(deadline); <-time.After(20 * time.Millisecond) {
		ctx, end := context.WithTimeout(context.Background(), 5*time.Second)
		err = ask(ctx)
		end()
		if err == nil {
			return nil
		}
		for _, p := range []*Process{c.Etcd, c.API, c.Manager, c.Schedule} {
			if p != nil && !p.Alive() {
				return fmt.Errorf("%s ended while waiting for %s: %s", p.Name, what, p.Said())
			}
		}
	}
	return fmt.Errorf("waited %v in vain for %s: %w", within, what, err)
}

// NodeReady says whether the node's Ready condition is true.
func NodeReady(node *v1.Node) bool {
	for _, cond := range node.Status.Conditions {
		if cond.Type == v1.NodeReady {
			return cond.Status == v1.ConditionTrue
		}
	}
	return false
}
