package monitor_test

import (
	"fmt"
	"os"
	"testing"

	"worknode/kernel/cgroup"
	"worknode/monitor/wire"
)

// BenchmarkStart is one whole start of a container, from request to reply: clone, groups, root, mounts, execve.
func BenchmarkStart(b *testing.B) {
	n := newNode(b)
	i := 0
	for b.Loop() {
		b.StopTimer()
		i++
		s := n.container(fmt.Sprint("c", i), "true")
		n.limited(&s, cgroup.Resources{})
		b.StartTimer()
		_, files, err := n.c.Start(n.ctx(), s, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		n.exit(s.ID)
		if err := n.c.Forget(n.ctx(), s.ID); err != nil {
			b.Fatal(err)
		}
		for _, f := range files {
			f.Close()
		}
		b.StartTimer()
	}
}

// BenchmarkExec is one exec of /bin/true in a running container, from request to exit.
func BenchmarkExec(b *testing.B) {
	n := newNode(b)
	s := n.container("c", "sleep", "1000")
	n.limited(&s, cgroup.Resources{})
	n.start(s)
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	i := 0
	for b.Loop() {
		i++
		e := wire.Start{ID: fmt.Sprint("e", i), Join: "c", Init: wire.Init{Args: []string{"true"}, Env: env, Cwd: "/",
			Caps: wire.Caps{Bounding: defaultCaps, Effective: defaultCaps, Permitted: defaultCaps}, NoNewPrivs: true}}
		if _, _, err := n.c.Start(n.ctx(), e, []*os.File{null, null, null}); err != nil {
			b.Fatal(err)
		}
		n.exit(e.ID)
		if err := n.c.Forget(n.ctx(), e.ID); err != nil {
			b.Fatal(err)
		}
	}
}
