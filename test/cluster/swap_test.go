package cluster

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"worknode/test/cluster/bed"
	"worknode/test/harness"
)

// Each of the three processes is a product of its own: whichever of them is upstream's, the example application runs on
// the node as it does on any other. CI runs what worknode is alone, and our runtime under upstream's two; make test-long
// runs all eight.
func TestExample(t *testing.T) { runExample(t, bed.NodeConfig{}) }
func TestSwapExample(t *testing.T) {
	runExample(t, bed.NodeConfig{Kubelet: bed.Upstream, Proxy: bed.Upstream})
}

func runExample(t *testing.T, config bed.NodeConfig) {
	c := bed.Shared(t)
	config.Images = []string{"app", "web", "redis"}
	start := time.Now()
	n := c.Node(t, config)
	t.Logf("%v: Ready after %v", config, time.Since(start).Round(time.Millisecond))
	start = time.Now()
	c.Apply(t, example(t))
	for _, name := range []string{"redis", "web-1", "web-2", "web-3"} {
		c.WaitPod(t, "default/"+name, "Ready", 60*time.Second, harness.Ready)
	}
	t.Logf("the application is Ready after %v", time.Since(start).Round(time.Millisecond))

	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: c.Dial}}
	visit := func() (replica string, visits int64, err error) {
		resp, err := client.Get("http://" + net.JoinHostPort(n.IP, "30080") + "/visit")
		if err != nil {
			return "", 0, err
		}
		defer resp.Body.Close()
		var v struct {
			Replica string
			Visits  int64
		}
		if resp.StatusCode != http.StatusOK {
			return "", 0, fmt.Errorf("the page says %s", resp.Status)
		}
		err = json.NewDecoder(resp.Body).Decode(&v)
		return v.Replica, v.Visits, err
	}
	harness.Until(t, "the page at the NodePort", 20*time.Second, func() bool { _, _, err := visit(); return err == nil })
	_, last, err := visit()
	if err != nil {
		t.Fatal(err)
	}
	seen, began := map[string]bool{}, time.Now()
	for i := 0; len(seen) < 3; i++ {
		replica, visits, err := visit()
		switch {
		case err != nil:
			t.Fatalf("visit %d: %v", i, err)
		case visits != last+1:
			t.Fatalf("visit %d after %d", visits, last)
		case time.Since(began) > harness.Slow(20*time.Second): // a proxy learns of endpoints later than we do
			t.Fatalf("after %d visits only %v answered", i, seen)
		}
		last, seen[replica] = visits, true
	}

	ip := strings.TrimSpace(c.Must(t, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"))
	has(t, c.Must(t, "exec", "redis", "--", "wget", "-qO-", "http://"+ip+"/visit"), `"replica":"web-`)
	has(t, c.Must(t, "logs", "redis"), "Ready to accept connections")
	c.Must(t, "delete", "pod", "web-1", "--wait=false")
	c.WaitPod(t, "default/web-1", "gone", 60*time.Second, harness.Gone)
	denied(t, c, n)
}

// example is the application of the README, as users apply it.
func example(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(harness.Top(), "example/manifests/*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests of the example: %v", err)
	}
	var all []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(data))
	}
	return strings.Join(all, "\n---\n")
}
