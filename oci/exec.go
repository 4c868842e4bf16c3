package oci

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/kernel/cgroup"
	"worknode/kernel/seccomp"
	"worknode/monitor/birth"
	"worknode/monitor/inside"
	"worknode/oci/spec"
)

// execFailed is what exec exits with when the program did not run, as runc has it.
const execFailed = 255

// executing are the options of exec.
type executing struct {
	process, console, pidFile, cwd, user, apparmor, label, group string
	env, caps, gids                                              []string
	tty, detach, noNewPrivs, ignorePaused                        bool
	preserve                                                     int
}

func (e *executing) flags(f *flags) {
	f.text(&e.process, "file of the process, as in config.json", "process", "p")
	f.text(&e.console, "unix socket that takes the terminal's master", "console-socket")
	f.text(&e.pidFile, "file to write the process' number to", "pid-file")
	f.text(&e.cwd, "working directory", "cwd")
	f.text(&e.user, "UID[:GID]", "user", "u")
	f.text(&e.apparmor, "AppArmor profile", "apparmor")
	f.text(&e.label, "SELinux label", "process-label")
	f.text(&e.group, "cgroup below the container's", "cgroup")
	f.list(&e.env, "NAME=VALUE, may be repeated", "env", "e")
	f.list(&e.caps, "one more capability, may be repeated", "cap", "c")
	f.list(&e.gids, "one more group, may be repeated", "additional-gids", "g")
	f.yes(&e.tty, "with a terminal", "tty", "t")
	f.yes(&e.detach, "return once the program runs", "detach", "d")
	f.yes(&e.noNewPrivs, "set no_new_privs", "no-new-privs")
	f.yes(&e.ignorePaused, "also in a paused container", "ignore-paused")
	f.IntVar(&e.preserve, "preserve-fds", 0, "descriptors from 3 on to pass to the program")
}

func (c *call) exec(f *flags, args []string) error {
	var e executing
	e.flags(f)
	rest, err := f.take(args, 1, -1)
	if err != nil {
		return err
	}
	c.code = execFailed
	k, err := c.open(rest[0])
	if err != nil {
		return err
	}
	switch now := k.status(); {
	case now == "paused" && !e.ignorePaused:
		return fault.Hint(fault.New(fault.Busy, "container %s is paused", k.ID), "resume it first, or use --ignore-paused")
	case now == specs.StateStopped || now == specs.StateCreating:
		return fault.New(fault.NotFound, "container %s is %s", k.ID, now)
	}
	p, err := e.processOf(k.spec, rest[1:])
	if err != nil {
		return err
	}
	if p.Terminal && e.detach && e.console == "" {
		return fault.Hint(fault.New(fault.Invalid, "exec: nobody holds the terminal"), "name a socket with --console-socket")
	}
	child, err := k.birth(c, p, &e)
	if err != nil {
		return fmt.Errorf("exec in container %s: %w", k.ID, err)
	}
	if e.pidFile != "" {
		if err := writeWhole(e.pidFile, []byte(strconv.Itoa(child.Pid))); err != nil {
			return err
		}
	}
	if e.detach || e.console != "" {
		if err := child.pass(e.console); err != nil {
			return err
		}
	}
	if e.detach {
		c.code = 0
		return nil
	}
	restore := child.hold()
	c.code = child.attend()
	restore()
	return nil
}

// processOf is the process to run: from a file, or the container's own with what the command line changes.
func (e *executing) processOf(s *specs.Spec, args []string) (*specs.Process, error) {
	var p specs.Process
	if e.process != "" {
		text, err := os.ReadFile(e.process)
		if err == nil {
			err = json.Unmarshal(text, &p)
		}
		if err != nil {
			return nil, fault.New(fault.Invalid, "process %s: %w", e.process, err)
		}
		return &p, nil
	}
	if s.Process != nil {
		p = *s.Process
	}
	if len(args) == 0 {
		return nil, fault.New(fault.Invalid, "exec: the command is missing")
	}
	p.Args, p.Terminal, p.ConsoleSize = args, e.tty, nil
	p.Env = append(p.Env[:len(p.Env):len(p.Env)], e.env...)
	p.NoNewPrivileges = p.NoNewPrivileges || e.noNewPrivs
	for into, value := range map[*string]string{&p.Cwd: e.cwd, &p.ApparmorProfile: e.apparmor, &p.SelinuxLabel: e.label} {
		if value != "" {
			*into = value
		}
	}
	for _, name := range e.caps {
		if p.Capabilities == nil {
			p.Capabilities = &specs.LinuxCapabilities{}
		}
		c := *p.Capabilities
		for _, set := range []*[]string{&c.Bounding, &c.Effective, &c.Permitted} {
			*set = append((*set)[:len(*set):len(*set)], name)
		}
		p.Capabilities = &c
	}
	return &p, e.identity(&p)
}

func (e *executing) identity(p *specs.Process) error {
	number := func(what, text string) (uint32, error) {
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return 0, fault.New(fault.Invalid, "%s %q is not a number", what, text)
		}
		return uint32(n), nil
	}
	if e.user != "" {
		uid, gid, both := strings.Cut(e.user, ":")
		var err error
		if p.User.UID, err = number("--user", uid); err != nil {
			return err
		}
		if both {
			if p.User.GID, err = number("--user", gid); err != nil {
				return err
			}
		}
	}
	for _, text := range e.gids {
		gid, err := number("--additional-gids", text)
		if err != nil {
			return err
		}
		p.User.AdditionalGids = append(p.User.AdditionalGids[:len(p.User.AdditionalGids):len(p.User.AdditionalGids)], gid)
	}
	return nil
}

// birth makes the process inside the container.
func (k *container) birth(c *call, p *specs.Process, e *executing) (*born, error) {
	init, warnings, err := spec.Process(p)
	if err != nil {
		return nil, err
	}
	if err := spec.Affinity(p.ExecCPUAffinity, &init.Extra); err != nil {
		return nil, err
	}
	if l := k.spec.Linux.Seccomp; l != nil {
		program, err := seccomp.Compile(l)
		if err != nil {
			return nil, err
		}
		init.Seccomp, init.SeccompFlags = program.Filter, program.Flags
	}
	tree, err := cgroup.Open()
	if err != nil {
		return nil, err
	}
	init.Cgroup = tree.Whole().ProcsFiles(k.Cgroup + "/" + e.group)
	if init.OOMScoreAdj == nil {
		init.OOMScoreAdj = scoreOf(k.Pid)
	}
	first, err := k.process()
	if err != nil {
		return nil, err
	}
	defer first.Close()
	keep, err := descriptors(e.preserve)
	if err != nil {
		return nil, err
	}
	order := birth.Order{Program: program, Enter: first, Keep: keep, Stdio: [3]*os.File{os.Stdin, os.Stdout, os.Stderr},
		Request: inside.Request{Init: init, Terminal: p.Terminal, User: k.differs("user"), Time: k.differs("time")}}
	if k.Keyring {
		order.Request.Keyring = k.ID
	}
	child, err := birth.Make(order)
	if err != nil {
		return nil, err
	}
	for _, w := range append(warnings, child.Warnings...) {
		c.warn("%s", w)
	}
	return &born{child}, nil
}

// differs reports whether the container has a namespace of its own.
func (k *container) differs(name string) bool {
	var ours, theirs unix.Stat_t
	return unix.Stat("/proc/self/ns/"+name, &ours) == nil && unix.Stat(fmt.Sprintf("/proc/%d/ns/%s", k.Pid, name), &theirs) == nil && ours.Ino != theirs.Ino
}
