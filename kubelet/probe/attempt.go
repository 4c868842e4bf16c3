package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"worknode/fault"
)

const (
	retries   = 3        // attempts in a row when the attempt itself breaks
	outputMax = 10 << 10 // bytes of output kept; more helps no one and lands in events

	userAgent = "kube-probe/1.37"
)

// outcome is what one attempt found. err means that no attempt could be made (a bad port name, the runtime away):
// that is never held against the container.
type outcome struct {
	verdict Verdict
	warning bool // a success with something to say
	output  string
	err     error
}

func (o outcome) failed() bool { return o.err != nil || o.verdict == Failure }

// event gives the reason and message of the event for an outcome, both empty for a plain success.
func (o outcome) event(k Kind) (reason, msg string) {
	switch {
	case o.err != nil:
		return "Unhealthy", fmt.Sprintf("%s probe errored: %v", k, o.err)
	case o.verdict == Failure:
		return "Unhealthy", fmt.Sprintf("%s probe failed: %s", k, o.output)
	case o.warning:
		return "ProbeWarning", fmt.Sprintf("%s probe warning: %s", k, o.output)
	default:
		return "", ""
	}
}

// attempt runs the handler once; if that breaks (not: if it fails) it tries again at once.
func (p *Prober) attempt(ctx context.Context, t *Target, timeout time.Duration) (got outcome) {
	for range retries {
		if got = p.handle(ctx, t, timeout); got.err == nil || ctx.Err() != nil || fault.Is(got.err, fault.Invalid) {
			break
		}
	}
	got.output = clip(got.output)
	return got
}

func (p *Prober) handle(ctx context.Context, t *Target, timeout time.Duration) outcome {
	h := t.Probe.ProbeHandler
	switch {
	case h.Exec != nil:
		return p.runExec(ctx, t, h.Exec.Command, timeout)
	case h.HTTPGet != nil:
		return p.http.get(ctx, t, h.HTTPGet, timeout)
	case h.TCPSocket != nil:
		port, err := portOf(h.TCPSocket.Port, t.Container)
		if err != nil {
			return outcome{err: err}
		}
		return dialTCP(ctx, hostOr(h.TCPSocket.Host, t.PodIP), port, timeout)
	case h.GRPC != nil:
		service := ""
		if h.GRPC.Service != nil {
			service = *h.GRPC.Service
		}
		return checkGRPC(ctx, t.PodIP, int(h.GRPC.Port), service, timeout)
	default:
		return outcome{err: fault.New(fault.Invalid, "container %s: %s probe names no handler", t.Key.Container, t.Kind)}
	}
}

func (p *Prober) runExec(ctx context.Context, t *Target, cmd []string, timeout time.Duration) outcome {
	env := staticEnv(t.Container.Env)
	args := make([]string, len(cmd))
	for i, a := range cmd {
		args[i] = expand(a, env)
	}
	out, exit, err := p.exec(ctx, t.ContainerID, args, timeout)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return outcome{verdict: Failure, output: fmt.Sprintf("command timed out: %q timed out after %v", strings.Join(args, " "), timeout)}
	case err != nil:
		return outcome{err: err}
	case exit != 0:
		return outcome{verdict: Failure, output: string(bytes.ToValidUTF8(out[:min(len(out), outputMax)], []byte("?")))}
	default:
		return outcome{verdict: Success}
	}
}

// dialTCP succeeds when the port accepts a connection.
func dialTCP(ctx context.Context, host string, port int, timeout time.Duration) outcome {
	conn, err := dial(ctx, net.JoinHostPort(host, strconv.Itoa(port)), timeout)
	if err != nil {
		return outcome{verdict: Failure, output: err.Error()}
	}
	_ = conn.Close() // the accepted connection was the answer
	return outcome{verdict: Success}
}

// dial connects for a probe. Its close resets the connection when the peer has not finished within a second:
// thousands of probes must not fill the conntrack table and the port range with TIME_WAIT.
func dial(ctx context.Context, addr string, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout, KeepAlive: -1}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	_ = conn.(*net.TCPConn).SetLinger(1) // an optimisation; without it the probe is as true
	return conn, nil
}

// portOf resolves a number, the name of one of the container's ports, or a number written as a string.
func portOf(p intstr.IntOrString, c *v1.Container) (int, error) {
	n := p.IntValue()
	if p.Type == intstr.String {
		for _, have := range c.Ports {
			if have.Name == p.StrVal {
				n = int(have.ContainerPort)
			}
		}
	}
	if n < 1 || n > 65535 {
		return 0, fault.New(fault.Invalid, "container %s: probe port %q is neither a port number nor the name of one of its ports", c.Name, p.String())
	}
	return n, nil
}

func hostOr(host, podIP string) string {
	if host != "" {
		return host
	}
	return podIP
}

func clip(s string) string {
	if len(s) > outputMax {
		return s[:outputMax]
	}
	return s
}
