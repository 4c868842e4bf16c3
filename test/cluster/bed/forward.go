package bed

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
)

// Forward carries what connects to the listener to a target inside the bed, until the listener is closed. sleeper is the
// process that holds the network namespace.
func Forward(listener net.Listener, sleeper int, target string) error {
	s := &space{pid: sleeper}
	for {
		client, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer client.Close()
			server, err := s.Dial(context.Background(), "tcp4", target)
			if err != nil {
				return
			}
			defer server.Close()
			go relay(client, server)
			relay(server, client)
		}()
	}
}

// relay copies one direction and passes its end on.
func relay(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	if half, ok := to.(*net.TCPConn); ok {
		_ = half.CloseWrite()
	}
}

// Publish makes the API server answer on a port of the machine's loopback (0: a free one), by a process that lives as
// long as the bed and runs "self forward LISTENER SLEEPER TARGET". It returns a kubeconfig for programs outside the bed.
func (c *Cluster) Publish(self string, port int) (string, error) {
	listener, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return "", err
	}
	defer listener.Close()
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		return "", err
	}
	defer file.Close()
	cmd := joining(c.core.group, self, "forward", "3", strconv.Itoa(c.core.pid), CoreIP+":6443")
	cmd.ExtraFiles = []*os.File{file}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	config := c.Dir + "/kubeconfig"
	return config, c.CA.Kubeconfig(config, fmt.Sprintf("https://%s", listener.Addr()), "admin")
}
