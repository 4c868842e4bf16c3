// Command nri is an NRI plugin made of upstream's library, for tests of the runtime's side of the protocol: it writes
// down what it is told, and does what files in its folder say. It is a module of its own, so that the product does not
// depend on that library.
//
// Files in --dir: "adjust.json", "update.json", "evict.json" answer CreateContainer, UpdateContainer and StopContainer
// (update-stop.json); a file named after an event holds "hang" (until it is gone), "crash" or "refuse".
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

type plugin struct {
	dir string
	mu  sync.Mutex
}

// note writes one line of what happened.
type note struct {
	Event      string
	Pod        *api.PodSandbox     `json:",omitempty"`
	Container  *api.Container      `json:",omitempty"`
	Resources  *api.LinuxResources `json:",omitempty"`
	Pods       []string            `json:",omitempty"`
	Containers []string            `json:",omitempty"`
	Text       string              `json:",omitempty"`
}

func (p *plugin) note(n note) error {
	p.mu.Lock()
	text, err := json.Marshal(n)
	if err == nil {
		var f *os.File
		if f, err = os.OpenFile(filepath.Join(p.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err == nil {
			_, err = f.Write(append(text, '\n'))
			f.Close()
		}
	}
	p.mu.Unlock()
	if err != nil {
		return err
	}
	for file := filepath.Join(p.dir, n.Event); ; time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile(file)
		switch what := strings.TrimSpace(string(text)); {
		case err != nil:
			return nil
		case what == "crash":
			os.Exit(3)
		case what != "hang":
			return errors.New(what)
		}
	}
}

// read fills v from a file, if there is one.
func (p *plugin) read(file string, v any) error {
	text, err := os.ReadFile(filepath.Join(p.dir, file))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(text, v)
}

func (p *plugin) Configure(_ context.Context, config, runtime, version string) (stub.EventMask, error) {
	return 0, p.note(note{Event: "Configure", Text: config + " " + runtime})
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) (u []*api.ContainerUpdate, err error) {
	n := note{Event: "Synchronize"}
	for _, pod := range pods {
		n.Pods = append(n.Pods, pod.GetName())
	}
	for _, c := range containers {
		n.Containers = append(n.Containers, c.GetName())
	}
	if err = p.note(n); err == nil {
		err = p.read("update-sync.json", &u)
	}
	return u, err
}

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note(note{Event: "RunPodSandbox", Pod: pod})
}

func (p *plugin) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, _, r *api.LinuxResources) error {
	return p.note(note{Event: "UpdatePodSandbox", Pod: pod, Resources: r})
}

func (p *plugin) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note(note{Event: "PostUpdatePodSandbox", Pod: pod})
}

func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note(note{Event: "StopPodSandbox", Pod: pod})
}

func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note(note{Event: "RemovePodSandbox", Pod: pod})
}

func (p *plugin) CreateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) (a *api.ContainerAdjustment, u []*api.ContainerUpdate, err error) {
	if err = p.note(note{Event: "CreateContainer", Pod: pod, Container: c}); err == nil {
		if err = p.read("adjust.json", &a); err == nil {
			err = p.read("update-create.json", &u)
		}
	}
	return a, u, err
}

func (p *plugin) PostCreateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.note(note{Event: "PostCreateContainer", Pod: pod, Container: c})
}

func (p *plugin) StartContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.note(note{Event: "StartContainer", Pod: pod, Container: c})
}

func (p *plugin) PostStartContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.note(note{Event: "PostStartContainer", Pod: pod, Container: c})
}

func (p *plugin) UpdateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container, r *api.LinuxResources) (u []*api.ContainerUpdate, err error) {
	if err = p.note(note{Event: "UpdateContainer", Pod: pod, Container: c, Resources: r}); err == nil {
		err = p.read("update.json", &u)
	}
	return u, err
}

func (p *plugin) PostUpdateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.note(note{Event: "PostUpdateContainer", Pod: pod, Container: c})
}

func (p *plugin) StopContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) (u []*api.ContainerUpdate, err error) {
	if err = p.note(note{Event: "StopContainer", Pod: pod, Container: c}); err == nil {
		err = p.read("update-stop.json", &u)
	}
	return u, err
}

func (p *plugin) RemoveContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	return p.note(note{Event: "RemoveContainer", Pod: pod, Container: c})
}

// validator is a plugin that has a say in what others want.
type validator struct{ *plugin }

func (v validator) ValidateContainerAdjustment(_ context.Context, r *api.ValidateContainerAdjustmentRequest) error {
	owners := map[string]string{}
	for _, f := range r.GetOwners().GetOwners() {
		for k, c := range f.GetCompound() {
			for key, owner := range c.GetOwners() {
				owners[api.Field(k).String()+" "+key] = owner
			}
		}
	}
	text, err := json.Marshal(owners)
	if err != nil {
		return err
	}
	return v.note(note{Event: "ValidateContainerAdjustment", Container: r.GetContainer(), Text: string(text)})
}

func main() {
	p := &plugin{}
	var name, index, socket string
	var validate bool
	flag.StringVar(&p.dir, "dir", os.Getenv("NRI_TEST_DIR"), "folder for notes and orders")
	flag.StringVar(&name, "name", "", "name, unless started by the runtime")
	flag.StringVar(&index, "idx", "", "index, likewise")
	flag.StringVar(&socket, "socket", "", "NRI socket, likewise")
	flag.BoolVar(&validate, "validate", false, "be a validator, too")
	flag.Parse()
	if p.dir == "" { // started by the runtime, which passes no flags: the folder is named after us
		self, _ := os.Executable()
		p.dir = self + ".d"
	}
	opts := []stub.Option{stub.WithOnClose(func() { os.Exit(0) })}
	if name != "" {
		opts = append(opts, stub.WithPluginName(name), stub.WithPluginIdx(index), stub.WithSocketPath(socket))
	}
	var impl any = p
	if validate {
		impl = validator{p}
	}
	s, err := stub.New(impl, opts...)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go p.unsolicited(s)
	if err := s.Run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// unsolicited sends updates.json when it appears, and writes down which failed.
func (p *plugin) unsolicited(s stub.Stub) {
	for ; ; time.Sleep(10 * time.Millisecond) {
		var u []*api.ContainerUpdate
		if err := p.read("unsolicited.json", &u); err != nil || len(u) == 0 {
			continue
		}
		os.Remove(filepath.Join(p.dir, "unsolicited.json"))
		failed, err := s.UpdateContainers(u)
		text := fmt.Sprint(len(failed), " failed")
		if err != nil {
			text = err.Error()
		}
		_ = p.note(note{Event: "Unsolicited", Text: text})
	}
}
