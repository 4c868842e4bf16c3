package bed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"worknode/kube"
	"worknode/test/harness"
)

// NodeConfig is the node that a test wants; the zero value is worknode throughout.
type NodeConfig struct {
	Name                     string // default node-K
	Runtime, Kubelet, Proxy  Maker
	Images                   []string // tars below test/images or example/images; default app
	RuntimeArgs, KubeletArgs []string // further flags
	ProxyArgs                []string
	KubeletYAML              string // further lines of upstream's configuration
	// Account is the node's kubeconfig where a test brings its own; default one with a client certificate of the node.
	Account string
	// Before runs when the namespaces and files are there and nothing runs yet.
	Before func(*Node) error
	// NoWait: do not wait for the node to be Ready.
	NoWait bool
}

// String names the three parts.
func (c NodeConfig) String() string {
	return fmt.Sprintf("%v runtime, %v kubelet, %v proxy", c.Runtime, c.Kubelet, c.Proxy)
}

// Node is a machine of the bed that runs a runtime, a kubelet and a proxy.
type Node struct {
	Name, IP, PodCIDR string
	Config            NodeConfig
	Runtime           *Process
	Kubelet           *Process
	Proxy             *Process
	*space

	cluster *Cluster
	again   bool // the parts are started again when they end, not by the test
}

// AddNode makes a machine and starts a node on it. Errors name what did not start and what it said.
func (c *Cluster) AddNode(config NodeConfig) (*Node, error) {
	k := c.next
	c.next++
	if config.Name == "" {
		config.Name = fmt.Sprintf("node-%d", k)
	}
	if config.Images == nil {
		config.Images = []string{"app"}
	}
	if err := missing(config); err != nil {
		return nil, err
	}
	n := &Node{Name: config.Name, IP: fmt.Sprintf("10.77.0.%d", 10+k), PodCIDR: fmt.Sprintf("10.88.%d.0/24", k), Config: config, cluster: c}
	var err error
	if n.space, err = newSpace(filepath.Join(c.Dir, n.Name), c.group+"/"+group(n.Name)); err != nil {
		return n, fmt.Errorf("node %s: %w", n.Name, err)
	}
	if err := n.join(c.core, fmt.Sprintf("port%d", k), n.IP, n.PodCIDR); err != nil {
		return n, fmt.Errorf("node %s: %w", n.Name, err)
	}
	if err := n.furnish(); err != nil {
		return n, fmt.Errorf("node %s: %w", n.Name, err)
	}
	if config.Before != nil {
		if err := config.Before(n); err != nil {
			return n, err
		}
	}
	if err := n.startParts(); err != nil || config.NoWait {
		return n, err
	}
	return n, n.WaitReady(time.Minute)
}

// furnish makes the cgroup of the pods, the certificates and the images.
func (n *Node) furnish() error {
	if err := group(n.podRoot()).make(true); err != nil {
		return err
	}
	// Nobody resolves names out there, and the control plane's address says so at once.
	if err := os.WriteFile(n.dir+"/etc/upper/resolv.conf", []byte("nameserver "+CoreIP+"\n"), 0o644); err != nil {
		return err
	}
	if err := n.cluster.CA.Issue(n.Name+"-serving", Subject{Name: "system:node:" + n.Name, Groups: []string{"system:nodes"}, Hosts: []string{n.Name, n.IP}}); err != nil {
		return err
	}
	if n.Config.Account == "" {
		who := Subject{Name: "system:node:" + n.Name, Groups: []string{"system:nodes"}}
		if _, err := n.cluster.User(n.Name, who); err != nil {
			return err
		}
	}
	return n.layImages()
}

// layImages links the images where our runtime finds them.
func (n *Node) layImages() error {
	if err := os.MkdirAll(n.dir+"/images", 0o755); err != nil {
		return err
	}
	for _, name := range n.Config.Images {
		file, err := imageFile(name)
		if err != nil {
			return err
		}
		to := n.dir + "/images/" + filepath.Base(file)
		if os.Link(file, to) == nil {
			continue
		}
		data, err := os.ReadFile(file) // another file system
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// imageFile finds an image by the name of its tar, or takes a path as it is.
func imageFile(name string) (string, error) {
	if filepath.IsAbs(name) {
		return name, nil
	}
	for _, dir := range []string{"test/images", "example/images"} {
		file := filepath.Join(harness.Top(), dir, name+".tar")
		if _, err := os.Stat(file); err == nil {
			return file, nil
		}
	}
	return "", fmt.Errorf("image %s.tar is neither in test/images nor in example/images: scripts/test-images and example/build.sh make them", name)
}

// Kubeconfig is the kubelet's.
func (n *Node) Kubeconfig() string {
	if n.Config.Account != "" {
		return n.Config.Account
	}
	return n.cluster.Kubeconfig(n.Name)
}

func (n *Node) startParts() error {
	argv, err := n.runtimeCommand()
	if err != nil {
		return err
	}
	path := "PATH=" + filepath.Join(harness.Top(), ".cache/upstream/bin") + ":" + os.Getenv("PATH")
	if n.Runtime, err = n.part("runtime", []string{path}, argv); err != nil {
		return err
	}
	if err := n.waitRuntime(); err != nil {
		return err
	}
	if argv, err = n.kubeletCommand(); err != nil {
		return err
	}
	if n.Kubelet, err = n.part("kubelet", nil, argv); err != nil {
		return err
	}
	if argv, err = n.proxyCommand(); err != nil {
		return err
	}
	n.Proxy, err = n.part("proxy", nil, argv)
	return err
}

// part starts one of the three.
func (n *Node) part(name string, env, argv []string) (*Process, error) {
	if n.again {
		argv = append([]string{"/bin/sh", "-c", `while :; do "$@"; sleep 0.1; done`, "again"}, argv...)
	}
	return n.start(name, env, argv...)
}

// waitRuntime waits for the socket, and puts the images into a runtime that does not find them itself.
func (n *Node) waitRuntime() error {
	deadline := time.Now().Add(harness.Slow(30 * time.Second))
	for {
		conn, err := net.Dial("unix", n.Path(n.socket()))
		if err == nil {
			conn.Close()
			break
		}
		if !n.Runtime.Alive() || time.Now().After(deadline) {
			return fmt.Errorf("the runtime does not answer: %w; %s", err, n.Runtime.Said())
		}
		<-time.After(10 * time.Millisecond)
	}
	if n.Config.Runtime == Ours {
		return nil
	}
	for _, name := range n.Config.Images {
		file := n.dir + "/images/" + strings.TrimSuffix(filepath.Base(name), ".tar") + ".tar"
		ctx, end := context.WithTimeout(context.Background(), harness.Slow(time.Minute))
		_, err := n.Run(ctx, upstreamBin("ctr"), "-n", "k8s.io", "images", "import", file)
		end()
		if err != nil {
			return err
		}
	}
	return nil
}

// Parts are the node's programs, those that were started.
func (n *Node) Parts() (all []*Process) {
	for _, p := range []*Process{n.Runtime, n.Kubelet, n.Proxy} {
		if p != nil {
			all = append(all, p)
		}
	}
	return all
}

// WaitReady waits until the API server has the node as Ready.
func (n *Node) WaitReady(within time.Duration) error {
	var last error
	for deadline := time.Now().Add(harness.Slow(within)); time.Now().Before(deadline); <-time.After(10 * time.Millisecond) {
		var node v1.Node
		ctx, end := context.WithTimeout(context.Background(), 5*time.Second)
		err := n.cluster.Kube.Get(ctx, kube.Nodes, "", n.Name, &node)
		end()
		if err == nil && NodeReady(&node) {
			return nil
		}
		last = err
		if err == nil {
			last = errors.New("it is there, but not Ready")
		}
		for _, p := range n.Parts() {
			if !p.Alive() {
				return fmt.Errorf("node %s: the %s ended: %s", n.Name, p.Name, p.Said())
			}
		}
	}
	var said strings.Builder
	for _, p := range n.Parts() {
		said.WriteString("\n" + p.Said())
	}
	return fmt.Errorf("node %s is not Ready within %v: %w%s", n.Name, within, last, said.String())
}

// Remove ends the machine as a power cut does, and takes the node and its pods out of the API.
func (n *Node) Remove() error {
	n.group.end()
	ctx, end := context.WithTimeout(context.Background(), time.Minute)
	defer end()
	now := int64(0)
	var pods v1.PodList
	err := n.cluster.Kube.List(ctx, kube.Pods, kube.Where{Field: "spec.nodeName=" + n.Name}, &pods)
	for i := range pods.Items {
		p := &pods.Items[i]
		if one := n.cluster.Kube.Delete(ctx, kube.Pods, p.Namespace, p.Name, &metav1.DeleteOptions{GracePeriodSeconds: &now}); !apierrors.IsNotFound(one) {
			err = errors.Join(err, one)
		}
	}
	if one := n.cluster.Kube.Delete(ctx, kube.Nodes, "", n.Name, nil); !apierrors.IsNotFound(one) {
		err = errors.Join(err, one)
	}
	return errors.Join(err, os.RemoveAll(n.dir))
}
