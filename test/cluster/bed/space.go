package bed

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"worknode/kernel/netns"
)

// space is a machine as its processes see it: a network and a mount namespace of its own, held open by a process that
// sleeps, with its own copies of the folders that programs write to.
type space struct {
	dir   string // holds what is mounted
	group group
	pid   int // of the sleeper
}

// settle makes the folders, mounts them, says so, and sleeps. /etc and /opt begin as the machine's own.
const settle = `set -e
mount --make-rshared /
mount -t tmpfs tmpfs /run
cd "$1"
mkdir -p var/lib var/log
mount --bind var/lib /var/lib
mount --bind var/log /var/log
for d in etc opt; do
	mkdir -p $d/upper $d/work
	mount -t overlay -o "lowerdir=/$d,upperdir=$d/upper,workdir=$d/work" overlay /$d
done
ip link set lo up
echo 1 > /proc/sys/net/ipv4/ip_forward
echo settled
exec 1>&-
exec sleep infinity`

// newSpace makes the namespaces; what ends the group ends them.
func newSpace(dir string, g group) (*space, error) {
	for _, d := range []string{"var/lib", "var/log"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := g.make(false); err != nil {
		return nil, err
	}
	cmd := joining(g, "unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", settle, "settle", dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	if strings.TrimSpace(line) != "settled" {
		_ = cmd.Wait()
		return nil, fmt.Errorf("namespaces of %s: %s", dir, said.String())
	}
	go func() { _ = cmd.Wait() }() // reaps it; it ends with the group
	return &space{dir: dir, group: g, pid: cmd.Process.Pid}, nil
}

// joining is a command that runs in a group, in a process group of its own: an interrupt at the terminal is for the
// test, which then ends it in order.
func joining(g group, argv ...string) *exec.Cmd {
	var script strings.Builder
	for _, f := range g.files() {
		fmt.Fprintf(&script, "echo 0 > %s || exit 99; ", f)
	}
	cmd := exec.Command("/bin/sh", append([]string{"-c", script.String() + `exec "$@"`, "joining"}, argv...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

func (s *space) netns() string { return "/proc/" + strconv.Itoa(s.pid) + "/ns/net" }

// Path is where a file of the machine is seen from outside.
func (s *space) Path(inside string) string { return "/proc/" + strconv.Itoa(s.pid) + "/root" + inside }

// enter is a command line run inside.
func (s *space) enter(argv ...string) []string {
	return append([]string{"nsenter", "-t", strconv.Itoa(s.pid), "--net", "--mount", "--"}, argv...)
}

// Dial connects from inside. It fits rest.Config.
func (s *space) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	enter := netns.Do(s.netns(), func() error {
		// An address is dialled on this very thread; a name would be resolved on others, outside.
		conn, err = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext(ctx, network, address)
		return err
	})
	return conn, enter
}

// Run runs a command inside to its end and returns what it wrote.
func (s *space) Run(ctx context.Context, argv ...string) (stdout string, err error) {
	line := s.enter(argv...)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	out, err := cmd.Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		err = fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, failed.Stderr)
	}
	return string(out), err
}

const (
	bridge = "bed0"
	uplink = "uplink"
)

// furnishCore makes the bridge that nodes are on, with the control plane's address.
func (s *space) furnishCore() error {
	return netns.Do(s.netns(), func() error {
		// A bridge without a port that is up has no carrier; a pair of devices gives it one.
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}}); err != nil {
			return err
		}
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "carrier"}, PeerName: "nowhere"}); err != nil {
			return err
		}
		if err := enslave("carrier"); err != nil {
			return err
		}
		if err := up("nowhere"); err != nil {
			return err
		}
		return address(bridge, CoreIP+"/24")
	})
}

// join connects a node's space to the bridge, and routes its pods to it.
func (s *space) join(core *space, port, ip, pods string) error {
	err := netns.Do(core.netns(), func() error {
		err := netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: port}, PeerName: uplink, PeerNamespace: netlink.NsPid(s.pid),
		})
		if err != nil {
			return fmt.Errorf("device %s: %w", port, err)
		}
		if err := enslave(port); err != nil {
			return err
		}
		link, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		_, to, err := net.ParseCIDR(pods)
		if err != nil {
			return err
		}
		return netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: to, Gw: net.ParseIP(ip)})
	})
	if err != nil {
		return err
	}
	return netns.Do(s.netns(), func() error {
		if err := address(uplink, ip+"/24"); err != nil {
			return err
		}
		link, err := netlink.LinkByName(uplink)
		if err != nil {
			return err
		}
		return netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Gw: net.ParseIP(CoreIP)})
	})
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("device %s: %w", name, err)
	}
	return netlink.LinkSetUp(link)
}

func enslave(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("device %s: %w", name, err)
	}
	master, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("device %s: %w", bridge, err)
	}
	if err := netlink.LinkSetMaster(link, master); err != nil {
		return fmt.Errorf("device %s to %s: %w", name, bridge, err)
	}
	return netlink.LinkSetUp(link)
}

func address(name, cidr string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("device %s: %w", name, err)
	}
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	if err := netlink.AddrReplace(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("address %s of %s: %w", cidr, name, err)
	}
	return netlink.LinkSetUp(link)
}
