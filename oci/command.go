package oci

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"worknode/fault"
)

// call is one invocation.
type call struct {
	build     string
	root      string
	logPath   string
	logFormat string
	code      int // what to exit with: a program's code, or an error's
}

// command is one word of the command line.
type command struct {
	name, args, about string
	do                func(c *call, f *flags, args []string) error
}

// commands in the order of a container's life. A function, so that no table is built in processes that are inits.
func commands() []command {
	return []command{
		{"create", "ID", "make a container that waits for start", (*call).create},
		{"start", "ID", "run the program of a created container", (*call).start},
		{"run", "ID", "create and start, wait for the end and delete", (*call).runAll},
		{"exec", "ID [COMMAND...]", "run another program in a container", (*call).exec},
		{"state", "ID", "print the state", (*call).state},
		{"kill", "ID [SIGNAL]", "send a signal to the first process (default TERM)", (*call).kill},
		{"delete", "ID", "remove a stopped container", (*call).remove},
		{"list", "", "list the containers below --root", (*call).list},
		{"ps", "ID [PS OPTIONS...]", "list a container's processes", (*call).ps},
		{"pause", "ID", "stop all processes until resume", (*call).pause},
		{"resume", "ID", "let paused processes go on", (*call).resume},
		{"update", "ID", "change limits", (*call).update},
		{"events", "ID", "print statistics and out-of-memory events", (*call).events},
		{"features", "", "print what this runtime can do", (*call).features},
		{"spec", "", "write a config.json to start from", (*call).spec},
		{"checkpoint", "ID", "not supported", (*call).checkpoint},
		{"restore", "ID", "not supported", (*call).checkpoint},
	}
}

// flags are a command's, with a short and a long name for the same value where runc has both.
type flags struct{ *flag.FlagSet }

func newFlags(name string) *flags {
	f := &flags{flag.NewFlagSet(name, flag.ContinueOnError)}
	f.SetOutput(io.Discard)
	return f
}

func (f *flags) text(value *string, usage string, names ...string) {
	for _, n := range names {
		f.StringVar(value, n, *value, usage)
	}
}

func (f *flags) yes(value *bool, usage string, names ...string) {
	for _, n := range names {
		f.BoolVar(value, n, *value, usage)
	}
}

// list is a flag that may be given again.
func (f *flags) list(value *[]string, usage string, names ...string) {
	for _, n := range names {
		f.Func(n, usage, func(s string) error { *value = append(*value, s); return nil })
	}
}

// take parses a command's arguments. Errors: Invalid; errHelp after help was printed.
func (f *flags) take(args []string, least, most int) ([]string, error) {
	err := f.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		f.SetOutput(os.Stdout)
		fmt.Fprintf(os.Stdout, "%s %s [options] ...\n", Name, f.Name())
		f.PrintDefaults()
		return nil, errHelp
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s: %w", f.Name(), err)
	}
	rest := f.Args()
	if len(rest) < least {
		return nil, fault.New(fault.Invalid, "%s: the container's id is missing", f.Name())
	}
	if most >= 0 && len(rest) > most {
		return nil, fault.New(fault.Invalid, "%s: %q is more than it takes", f.Name(), rest[most:])
	}
	return rest, nil
}

var errHelp = errors.New("help was printed")

// parse reads the options in front of the command.
func (c *call) parse(args []string) ([]string, error) {
	f := newFlags("")
	c.root, c.logFormat = "/run/worknode/oci", "text"
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" && os.Geteuid() != 0 {
		c.root = filepath.Join(dir, Name)
	}
	var debug, systemd, version bool
	var rootless, criu string
	f.text(&c.root, "folder of the containers' records; best on tmpfs", "root")
	f.text(&c.logPath, "file for warnings and errors", "log")
	f.text(&c.logFormat, "text or json", "log-format")
	f.yes(&debug, "accepted for runc's sake", "debug")
	f.yes(&systemd, "refused: cgroups are made without systemd", "systemd-cgroup")
	f.text(&rootless, "only auto and false are accepted", "rootless")
	f.text(&criu, "accepted for runc's sake: nothing is checkpointed", "criu")
	f.yes(&version, "print the version", "version", "v")
	err := f.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp), err == nil && len(f.Args()) == 0 && !version, err == nil && len(f.Args()) > 0 && f.Arg(0) == "help":
		c.help(f)
		return nil, nil
	case err != nil:
		return nil, fault.New(fault.Invalid, "%w", err)
	case version:
		fmt.Fprintf(os.Stdout, "%s version %s\nspec: %s\n", Name, c.build, specs.Version)
		return nil, nil
	case c.logFormat != "text" && c.logFormat != "json":
		return nil, fault.New(fault.Invalid, "--log-format %q is neither text nor json", c.logFormat)
	case rootless == "true":
		return nil, fault.New(fault.Unsupported, "--rootless: containers need root here")
	case systemd && f.Arg(0) != "features":
		return nil, fault.Hint(fault.New(fault.Unsupported, "--systemd-cgroup: cgroups are made without systemd"),
			"configure the engine for the cgroupfs driver")
	}
	c.root, err = filepath.Abs(c.root)
	return f.Args(), err
}

func (c *call) help(f *flags) {
	fmt.Fprintf(os.Stdout, "%s %s: an OCI runtime\n\n  %s [options] COMMAND [options] ...\n\n", Name, c.build, Name)
	for _, cmd := range commands() {
		fmt.Fprintf(os.Stdout, "  %-32s%s\n", strings.TrimSpace(cmd.name+" "+cmd.args), cmd.about)
	}
	fmt.Fprintln(os.Stdout, "\nOptions:")
	f.SetOutput(os.Stdout)
	f.PrintDefaults()
}

func (c *call) run(args []string) error {
	if len(args) == 0 {
		return nil
	}
	for _, cmd := range commands() {
		if cmd.name != args[0] {
			continue
		}
		err := cmd.do(c, newFlags(cmd.name), args[1:])
		if errors.Is(err, errHelp) {
			return nil
		}
		return err
	}
	return fault.Hint(fault.New(fault.Invalid, "command %q is unknown", args[0]), "see %s help", Name)
}

// write adds a line to the log, in the two forms that engines read. Source: logrus, as runc uses it.
func (c *call) write(level, text string) {
	if c.logPath == "" {
		return
	}
	f, err := os.OpenFile(c.logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: log: %v\n", Name, err)
		return
	}
	defer f.Close()
	now := time.Now().Format(time.RFC3339)
	if c.logFormat == "text" {
		fmt.Fprintf(f, "time=%q level=%s msg=%q\n", now, level, text)
		return
	}
	line, _ := json.Marshal(map[string]string{"level": level, "msg": text, "time": now})
	_, _ = f.Write(append(line, '\n'))
}
