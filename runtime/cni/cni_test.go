package cni

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types/create"

	"worknode/fault"
)

// plugin is a CNI plugin that keeps an address per container as a file below DIR/ips, notes what it is called with, and
// misbehaves in COMMAND as DIR/mode.COMMAND says.
const plugin = `#!/bin/sh
dir=DIR
conf=$(cat)
echo "$CNI_COMMAND $CNI_CONTAINERID" >>$dir/calls
echo "$conf" >$dir/conf.$CNI_COMMAND
env >$dir/env.$CNI_COMMAND
[ "$CNI_COMMAND" = ADD ] && echo 10.1.0.7 >$dir/ips/$CNI_CONTAINERID
case "$(cat $dir/mode.$CNI_COMMAND 2>/dev/null)" in
hang) sleep 1000 & echo $! >>$dir/pids; wait ;;
fail) echo '{"code":7,"msg":"no more addresses","details":"the pool is empty"}'; exit 1 ;;
again) echo '{"code":11,"msg":"the agent is starting"}'; exit 1 ;;
garbage) echo '<html>hello</html>'; exit 0 ;;
null) echo null; exit 0 ;;
dies) echo "trouble on stderr" >&2; exit 3 ;;
flood) yes | head -c 3000000; exit 0 ;;
silent) exit 0 ;;
noaddress) echo '{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"x"}]}'; exit 0 ;;
strange) echo '{"cniVersion":"1.1.0","interfaces":[],"ips":[{"address":"10.1.0.7/24","interface":9}]}'; exit 0 ;;
esac
case $CNI_COMMAND in
ADD) echo '{"cniVersion":"1.1.0","interfaces":[{"name":"veth1"},{"name":"eth0","sandbox":"/x"}],"ips":[{"address":"10.9.9.9/24","interface":0},{"address":"10.1.0.7/24","interface":1},{"address":"fd00::7/64","interface":1}]}' ;;
DEL) rm -f $dir/ips/$CNI_CONTAINERID ;;
esac
`

const goodConf = `{"cniVersion":"1.1.0","name":"blue","plugins":[{"type":"fake","capabilities":{"portMappings":true,"bandwidth":true,"dns":true,"ipRanges":true,"cgroupPath":true}}]}`

// lab is a folder with the plugin, a configuration folder and what the plugin noted.
type lab struct {
	t    *testing.T
	dir  string
	conf Config
}

func newLab(t *testing.T) *lab {
	l := &lab{t: t, dir: t.TempDir()}
	for _, d := range []string{"ips", "bin", "net.d"} {
		if err := os.Mkdir(filepath.Join(l.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	l.conf = Config{ConfDir: filepath.Join(l.dir, "net.d"), BinDirs: []string{filepath.Join(l.dir, "bin")},
		State: filepath.Join(l.dir, "state"), AddLimit: 4 * time.Second, DelLimit: 4 * time.Second}
	l.install("fake")
	return l
}

func (l *lab) install(name string) {
	l.write("bin/"+name, strings.ReplaceAll(plugin, "DIR", l.dir))
	if err := os.Chmod(filepath.Join(l.dir, "bin", name), 0o755); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) write(name, text string) {
	l.t.Helper()
	next := filepath.Join(l.dir, "next")
	if err := os.WriteFile(next, []byte(text), 0o644); err != nil {
		l.t.Fatal(err)
	}
	if err := os.Rename(next, filepath.Join(l.dir, name)); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) remove(name string) {
	l.t.Helper()
	if err := os.Remove(filepath.Join(l.dir, name)); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) mode(command, mode string) { l.write("mode."+command, mode) }

func (l *lab) read(name string) string {
	text, _ := os.ReadFile(filepath.Join(l.dir, name))
	return string(text)
}

// taken counts the addresses that the plugin holds.
func (l *lab) taken() int { return len(l.list("ips")) }

func (l *lab) list(name string) (out []string) {
	entries, _ := os.ReadDir(filepath.Join(l.dir, name))
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func (l *lab) open() *Network {
	l.t.Helper()
	n, err := Open(l.conf)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(n.Close)
	return n
}

func (l *lab) until(what string, ok func() bool) {
	l.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			l.t.Fatalf("not within ten seconds: %s", what)
		}
	}
}

func box(id string) Request {
	return Request{Sandbox: id, NetNS: "/nonexistent", Namespace: "shop", Name: "web", UID: "u1", Cgroup: "/kubepods/x",
		Annotations: map[string]string{"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "nonsense"},
		Ports:       []Port{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}}, DNS: DNS{Servers: []string{"10.96.0.10"}}}
}

func TestAddTellsThePluginAllAndDelGivesAllBack(t *testing.T) {
	l := newLab(t)
	l.write("net.d/10-blue.conflist", goodConf)
	n := l.open()
	n.SetPodCIDR([]string{"10.1.0.0/24", "fd00::/64"})
	n.Close()
	n = l.open() // the kubelet says it once
	r, err := n.Add(t.Context(), box("one"))
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(r) != "{blue [10.1.0.7 fd00::7] true}" {
		t.Errorf("result %v", r)
	}
	env := l.read("env.ADD")
	for _, want := range []string{"CNI_CONTAINERID=one", "CNI_NETNS=/nonexistent", "CNI_IFNAME=eth0", "K8S_POD_NAMESPACE=shop", "K8S_POD_NAME=web",
		"K8S_POD_INFRA_CONTAINER_ID=one", "K8S_POD_UID=u1", "IgnoreUnknown=1"} {
		if !strings.Contains(env, want) {
			t.Errorf("the plugin's environment lacks %s", want)
		}
	}
	var conf struct{ RuntimeConfig map[string]json.RawMessage }
	if err := json.Unmarshal([]byte(l.read("conf.ADD")), &conf); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"portMappings": `[{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":""}]`,
		"bandwidth":    `{"ingressBurst":2147483647,"ingressRate":10000000}`,
		"dns":          `{"servers":["10.96.0.10"]}`, "cgroupPath": `"/kubepods/x"`,
		"ipRanges": `[[{"subnet":"10.1.0.0/24"}],[{"subnet":"fd00::/64"}]]`,
	} {
		if got := string(conf.RuntimeConfig[key]); got != want {
			t.Errorf("runtimeConfig %s is %s, want %s", key, got, want)
		}
	}
	l.write("net.d/10-blue.conflist", strings.Replace(goodConf, "blue", "green", 1)) // what comes to force later is no matter
	l.until("green in force", func() bool { c, _ := n.inForce(); return c.list.Name == "green" })
	for range 2 {
		if err := n.Del(t.Context(), "one"); err != nil {
			t.Fatal(err)
		}
	}
	if got := l.read("conf.DEL"); !strings.Contains(got, `"name":"blue"`) || !strings.Contains(got, `"prevResult"`) || !strings.Contains(got, "portMappings") {
		t.Errorf("DEL got %s", got)
	}
	if strings.Contains(l.read("env.DEL"), "CNI_NETNS=/") || strings.Count(l.read("calls"), "DEL") != 1 {
		t.Errorf("DEL names a namespace that is gone, or ran twice: %s", l.read("calls"))
	}
	if l.taken() != 0 || len(l.list("state/attachments")) != 0 || len(l.list("state/results")) != 0 {
		t.Errorf("left: %v %v %v", l.list("ips"), l.list("state/attachments"), l.list("state/results"))
	}
}

func TestPluginsThatMisbehaveInAdd(t *testing.T) {
	for mode, want := range map[string]struct {
		kind fault.Kind
		text string
	}{
		"hang":      {fault.Temporary, "did not end within"},
		"fail":      {fault.Unknown, "code 7: no more addresses; the pool is empty"},
		"again":     {fault.Temporary, "the agent is starting"},
		"garbage":   {fault.Unknown, "<html>hello</html>"},
		"null":      {fault.Unknown, "no result"},
		"dies":      {fault.Unknown, "trouble on stderr"},
		"flood":     {fault.Unknown, "more than 1048576 bytes"},
		"silent":    {fault.Unknown, "no result"},
		"noaddress": {fault.Unknown, "no address of eth0"},
		"strange":   {fault.Unknown, "no address of eth0"},
	} {
		t.Run(mode, func(t *testing.T) {
			l := newLab(t)
			l.write("net.d/10-blue.conflist", goodConf)
			l.mode("ADD", mode)
			n := l.open()
			_, err := n.Add(t.Context(), box("one"))
			if !fault.Is(err, want.kind) || !strings.Contains(fmt.Sprint(err), want.text) || !strings.Contains(fmt.Sprint(err), "blue") {
				t.Errorf("got kind %v: %v", fault.Of(err), err)
			}
			if l.taken() != 1 {
				t.Fatal("the plugin took no address, so the test shows nothing")
			}
			if err := n.Del(t.Context(), "one"); err != nil || l.taken() != 0 {
				t.Errorf("after DEL %d addresses are taken, %v", l.taken(), err)
			}
			for line := range strings.Lines(l.read("pids")) {
				pid, _ := strconv.Atoi(strings.TrimSpace(line))
				l.until("the plugin's child to be killed", func() bool {
					stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
					return err != nil || strings.Contains(string(stat), ") Z ") || syscall.Kill(pid, 0) != nil
				})
			}
		})
	}
}

// A DEL that fails is an error to whoever waits, and is repeated for whoever does not.
func TestDelIsRepeatedUntilItSucceeds(t *testing.T) {
	l := newLab(t)
	l.write("net.d/10-blue.conflist", goodConf)
	n := l.open()
	for _, id := range []string{"one", "two"} {
		if _, err := n.Add(t.Context(), box(id)); err != nil {
			t.Fatal(err)
		}
	}
	l.mode("DEL", "fail")
	if err := n.Del(t.Context(), "one"); err == nil || !strings.Contains(err.Error(), "no more addresses") {
		t.Errorf("got %v", err)
	}
	n.Later("one")
	l.remove("bin/fake") // an add-on that is removed does not hold pods up
	if err := n.Del(t.Context(), "two"); err != nil {
		t.Errorf("without the plugin: %v", err)
	}
	if err := n.Ready(); err == nil || !strings.Contains(err.Error(), "fake is in none of") {
		t.Errorf("Ready without the plugin: %v", err)
	}
	if l.taken() != 2 {
		t.Fatalf("%d addresses are taken, want 2", l.taken())
	}
	l.mode("DEL", "")
	l.install("fake")
	l.until("both addresses to come back", func() bool { return l.taken() == 0 })
}

// Reconcile is what a start does: after a crash in ADD, and after a reboot.
func TestAStartGivesBackWhatTheDeadHold(t *testing.T) {
	l := newLab(t)
	l.write("net.d/10-blue.conflist", goodConf)
	n := l.open()
	for _, id := range []string{"alive", "dead", "stranger"} {
		if _, err := n.Add(t.Context(), box(id)); err != nil {
			t.Fatal(err)
		}
	}
	l.mode("ADD", "fail")
	n.Add(t.Context(), box("half"))
	n.Close()
	l.write("state/attachments/torn.json", `{"Version":1,"Sand`)
	l.write("net.d/10-blue.conflist", strings.Replace(goodConf, "blue", "green", 1))
	n = l.open()
	if err := n.Reconcile(map[string]bool{"alive": true}); err != nil {
		t.Fatal(err)
	}
	l.until("the dead's addresses to come back", func() bool { return l.taken() == 1 })
	l.until("GC", func() bool { return strings.Contains(l.read("calls"), "GC") })
	if ips := l.list("ips"); len(ips) != 1 || ips[0] != "alive" {
		t.Errorf("addresses of %v are taken", ips)
	}
	if gc := l.read("conf.GC"); !strings.Contains(gc, `"cni.dev/valid-attachments":[{"containerID":"alive","ifname":"eth0"}]`) {
		t.Errorf("GC got %s", gc)
	}
	if err := n.Del(t.Context(), "alive"); err != nil || l.taken() != 0 {
		t.Errorf("the survivor's DEL: %v", err)
	}
}

func TestConfigurationsAreReadAsTheyChange(t *testing.T) {
	l := newLab(t)
	l.conf.ConfDir = filepath.Join(l.dir, "etc/cni/net.d") // the folder itself comes later
	n := l.open()
	ready := func(what string, want string) {
		t.Helper()
		l.until(what, func() bool {
			err := n.Ready()
			return want == "" && err == nil || want != "" && err != nil && strings.Contains(err.Error(), want)
		})
	}
	ready("no configuration", "no network configuration in "+l.conf.ConfDir)
	if _, err := n.Add(t.Context(), box("x")); !fault.Is(err, fault.Temporary) {
		t.Errorf("Add without a configuration: %v", err)
	}
	if err := os.MkdirAll(l.conf.ConfDir, 0o755); err != nil {
		t.Fatal(err)
	}
	l.write("etc/cni/net.d/10-blue.conflist", goodConf)
	ready("the first one", "")
	l.write("etc/cni/net.d/05-bad.conf", `{"name":"red",`)
	ready("a bad one before it", "05-bad.conf")
	if r, err := n.Add(t.Context(), box("one")); err != nil || r.Network != "blue" {
		t.Errorf("the old one is not in force any more: %v %v", r, err)
	}
	l.write("etc/cni/net.d/05-bad.conf", `{"name":"red","cniVersion":"0.4.0","type":"fake"}`)
	ready("the corrected one", "")
	if r, err := n.Add(t.Context(), box("two")); err != nil || r.Network != "red" || r.Ports {
		t.Errorf("got %v %v", r, err)
	}
	l.write("etc/cni/net.d/05-bad.conf", `{"name":"red","cniVersion":"7.0.0","type":"fake"}`)
	ready("a version of the future", `cniVersion "7.0.0"`)
	l.remove("etc/cni/net.d/05-bad.conf")
	ready("the first one again", "")
	l.mode("STATUS", "again")
	l.write("etc/cni/net.d/10-blue.conflist", goodConf+"\n")
	ready("STATUS fails", "the agent is starting")
	l.mode("STATUS", "")
	ready("STATUS succeeds again", "")
	if err := os.RemoveAll(filepath.Join(l.dir, "etc")); err != nil {
		t.Fatal(err)
	}
	ready("the folder is gone", "no network configuration")
	for _, id := range []string{"one", "two"} {
		if err := n.Del(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	if l.taken() != 0 {
		t.Errorf("addresses of %v are taken", l.list("ips"))
	}
	if err := os.MkdirAll(l.conf.ConfDir, 0o755); err != nil {
		t.Fatal(err)
	}
	l.write("etc/cni/net.d/10-blue.conflist", goodConf)
	ready("the folder is back", "")
}

func FuzzConfiguration(f *testing.F) {
	for _, seed := range []string{goodConf, `{"name":"red","cniVersion":"0.4.0","type":"fake"}`, `{"name":"x","plugins":[]}`, `{"name":"x","plugins":[null]}`,
		`{"name":"../x","type":"y"}`, `{"cniVersions":["1.0.0","9.0.0"],"name":"x","plugins":[{"type":"y"}]}`, `[]`, `null`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parse(data)
		if err == nil && (list.Name == "" || strings.ContainsAny(list.Name, "/\x00")) {
			t.Errorf("accepted the name %q", list.Name)
		}
	})
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"Version":1,"Sandbox":"one","Network":"blue","CNIVersion":"1.1.0","Plugins":[{"type":"fake"}],"Args":[["a","b"]]}`))
	f.Add([]byte(`{"Sandbox":"one","Network":"x","Plugins":[null]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, err := decodeRecord(data, "one"); err == nil {
			if list, err := r.list(); err != nil || len(list.Plugins) == 0 {
				t.Errorf("accepted %+v: %v", r, err)
			}
		}
	})
}

func FuzzResult(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"address":"10.1.0.7/24","interface":0}]}`))
	f.Add([]byte(`{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.1.0.7/24","interface":-1}]}`))
	f.Add([]byte(`{"cniVersion":"0.2.0","ip4":{"ip":"10.1.0.7/24"}}`))
	f.Add([]byte(`{"cniVersion":"1.0.0","interfaces":[null],"ips":[null,{"interface":0}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		raw, err := create.CreateFromBytes(data)
		if err != nil {
			return
		}
		if ips, err := addresses(raw); (err == nil) != (len(ips) > 0) {
			t.Errorf("%v, %v", ips, err)
		}
	})
}
