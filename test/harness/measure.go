package harness

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// Memory is the proportional set size of one process in bytes. Source: proc(5), smaps_rollup.
func Memory(pid int) int64 {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "Pss:"); ok {
			kb, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10
		}
	}
	return 0
}

// PSS describes the memory of all of the node's processes.
func (n *Node) PSS() string {
	var sum int64
	var parts []string
	for _, name := range []string{"supervisor", "runtime", "kubelet", "proxy", "monitor"} {
		pss := Memory(n.Pid(name))
		sum += pss
		parts = append(parts, fmt.Sprintf("%s %.0f", name, float64(pss)/1e6))
	}
	return fmt.Sprintf("%.0f MB (%s)", float64(sum)/1e6, strings.Join(parts, ", "))
}

// Connect waits for the API of a node that was started with NoWait.
func (n *Node) Connect() { n.t.Helper(); n.connect() }

// Ask makes one new connection from inside the node's network and returns what the app there answers: its host name.
func (n *Node) Ask(address string) (string, error) {
	conn, err := n.Dial(address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(Slow(2 * time.Second)))
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n"); err != nil {
		return "", err
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	line, err := bufio.NewReader(answer.Body).ReadString('\n')
	return strings.TrimSpace(line), err
}
