// Cluster brings a real Kubernetes control plane up beside the machine's own network, with as many nodes as one likes,
// and takes it down again: `make cluster`, `make cluster-down`.
package main

import (
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"worknode/test/cluster/bed"
	"worknode/test/harness"
)

const (
	name     = "cluster"
	selfName = "control-plane"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "up":
			return up(args[1:])
		case "self":
			return self()
		case "down":
			for _, name := range []string{name, selfName} {
				if err := bed.Down(folder(name), name); err != nil {
					return err
				}
			}
			return nil
		case "forward":
			return forward(args[1:])
		}
	}
	return fmt.Errorf("usage: cluster up [-nodes N] [-runtime worknode|upstream] [-kubelet …] [-proxy …] | cluster self | cluster down")
}

func folder(name string) string { return filepath.Join(harness.Top(), ".cache/cluster/run-"+name) }

// self is a control plane of static pods on a machine with nothing but worknode.
func self() error {
	c, n, err := bed.UpSelf(folder(selfName), selfName)
	if err != nil {
		var said string
		for _, p := range n.Parts() {
			said += "\n" + p.Said()
		}
		return fmt.Errorf("%w%s", err, said)
	}
	fmt.Println("etcd, API server, controller manager and scheduler are pods of the node that joined them; manifests and logs are in", filepath.Join(c.Dir, n.Name))
	return publish(c, 0)
}

func up(args []string) error {
	flags := flag.NewFlagSet("up", flag.ExitOnError)
	nodes := flags.Int("nodes", 0, "how many nodes to start")
	port := flags.Int("port", 0, "of the API server on 127.0.0.1 (0: a free one)")
	var c bed.NodeConfig
	for part, maker := range map[string]*bed.Maker{"runtime": &c.Runtime, "kubelet": &c.Kubelet, "proxy": &c.Proxy} {
		flags.Func(part, "whose "+part+" the nodes have: worknode (default) or upstream", func(s string) error {
			switch s {
			case "worknode":
				*maker = bed.Ours
			case "upstream":
				*maker = bed.Upstream
			default:
				return fmt.Errorf("want worknode or upstream")
			}
			return nil
		})
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	cluster, err := bed.Up(folder(name), name, bed.Config{})
	if err == nil {
		err = furnish(cluster, *nodes, *port, c)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster: what was started is still there to look at, until `make cluster-down`")
	}
	return err
}

func furnish(cluster *bed.Cluster, nodes, port int, c bed.NodeConfig) error {
	fmt.Println("the control plane runs; its logs are in", cluster.Dir+"/core")
	c.Images = []string{"app", "web", "redis"}
	for range nodes {
		n, err := cluster.AddNode(c)
		if err != nil {
			return err
		}
		fmt.Printf("node %s is Ready (%v); its logs are in %s\n", n.Name, c, filepath.Join(cluster.Dir, n.Name))
	}
	return publish(cluster, port)
}

// publish makes the API server answer on the machine's loopback and says how.
func publish(c *bed.Cluster, port int) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	kubeconfig, err := c.Publish(self, port)
	if err != nil {
		return err
	}
	fmt.Println("export KUBECONFIG=" + kubeconfig)
	return nil
}

// forward is the process that Publish starts: descriptor, sleeper, target.
func forward(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("usage: cluster forward DESCRIPTOR PID ADDRESS")
	}
	fd, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	listener, err := net.FileListener(os.NewFile(uintptr(fd), "listener"))
	if err != nil {
		return err
	}
	return bed.Forward(listener, pid, args[2])
}
