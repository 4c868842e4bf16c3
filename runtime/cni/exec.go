package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"worknode/fault"
)

const (
	maxOutput = 1 << 20         // bytes of a plugin's answer; more is an error
	maxStderr = 4 << 10         // bytes of a plugin's stderr that we keep
	pipeWait  = time.Second     // for what a killed plugin left holding its pipes
	busyWait  = 5 * time.Second // for an installer to end writing a plugin
)

// holdKey is the context key of the file whose lock plugins inherit.
type holdKey struct{}

// runner runs plugins: bounded in time and output, and with all that they start. libcni's own waits for ever for the
// pipes of a plugin's children, and takes any amount of output.
type runner struct{ *version.PluginDecoder }

// FindInPath is the plugin's file. Errors: NotFound, with the folders.
func (runner) FindInPath(plugin string, dirs []string) (string, error) { return find(plugin, dirs) }

func find(plugin string, dirs []string) (string, error) {
	if plugin == "" || plugin != filepath.Base(plugin) || strings.HasPrefix(plugin, ".") {
		return "", fault.New(fault.Invalid, "CNI plugin %q: a plain file name is needed", plugin)
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, plugin)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
			return path, nil
		}
	}
	err := fault.New(fault.NotFound, "CNI plugin %s is in none of %s", plugin, strings.Join(dirs, ", "))
	return "", fault.Hint(err, "install it (the reference plugins come with most add-ons), or name its folder with --cni-bin-dir")
}

// ExecPlugin runs one plugin to its end.
// Errors: Temporary if it does not end in time (it is killed, with its children); the plugin's own error as *types.Error.
func (runner) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	begun := time.Now()
	for {
		out, err := run(ctx, path, stdin, environ)
		if !errors.Is(err, unix.ETXTBSY) || time.Since(begun) > busyWait {
			return out, err
		}
		select { // an installer is writing it
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func run(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	name := filepath.Base(path)
	stdout, stderr := &bounded{max: maxOutput}, &bounded{max: maxStderr}
	c := exec.CommandContext(ctx, path)
	c.Env, c.Stdin, c.Stdout, c.Stderr = environ, bytes.NewReader(stdin), stdout, stderr
	c.Dir, c.WaitDelay = "/", pipeWait
	if hold, ok := ctx.Value(holdKey{}).(*os.File); ok {
		c.ExtraFiles = []*os.File{hold}
	}
	// A group of its own can be killed whole; and a plugin does not outlive us to do its work unseen.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c.Cancel = func() error { return unix.Kill(-c.Process.Pid, unix.SIGKILL) }
	runtime.LockOSThread() // the death signal is that of the thread that started it
	defer runtime.UnlockOSThread()
	begun := time.Now()
	err := c.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it succeeded and left a child behind that holds its pipes
	}
	if err == nil && stdout.over {
		err = fault.New(fault.Unknown, "CNI plugin %s answered with more than %d bytes", name, maxOutput)
	}
	switch {
	case ctx.Err() != nil && err != nil:
		return nil, fault.New(fault.Temporary, "CNI plugin %s did not end within %s and was killed%s", name, time.Since(begun).Round(10*time.Millisecond), stderr.quote())
	case err == nil:
		if len(stderr.kept) > 0 {
			slog.Debug("CNI plugin wrote to stderr", "plugin", name, "text", string(stderr.kept))
		}
		return answer(name, environ, stdout.kept)
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return nil, fmt.Errorf("CNI plugin %s: %w%s", name, err, stderr.quote())
	}
	said := &types.Error{}
	if json.Unmarshal(stdout.kept, said) != nil || said.Msg == "" {
		return nil, fault.New(fault.Unknown, "CNI plugin %s: %s, and no error in the words of the spec%s%s", name, err, stdout.quote(), stderr.quote())
	}
	return nil, fmt.Errorf("CNI plugin %s: code %d: %w", name, said.Code, said)
}

// answer refuses what is no JSON object while we can still say who wrote it. Only ADD and VERSION have an answer.
func answer(name string, environ []string, out []byte) ([]byte, error) {
	for _, kv := range environ {
		if command, ok := strings.CutPrefix(kv, "CNI_COMMAND="); ok && command != "ADD" && command != "VERSION" {
			return out, nil
		}
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(out, &object); err != nil || object == nil {
		return nil, fault.New(fault.Unknown, "CNI plugin %s succeeded, but its answer is no result%s", name, (&bounded{kept: out}).quote())
	}
	return out, nil
}

// bounded keeps the first bytes written to it, and takes the rest as if it did. It embeds no buffer: io.Copy would go
// round Write by the buffer's ReadFrom.
type bounded struct {
	kept []byte
	max  int
	over bool
}

func (b *bounded) Write(p []byte) (int, error) {
	n := len(p)
	if room := b.max - len(b.kept); n > room {
		p, b.over = p[:room], true
	}
	b.kept = append(b.kept, p...)
	return n, nil
}

// quote shows the beginning in an error, empty if there is nothing.
func (b *bounded) quote() string {
	text := strings.TrimSpace(string(b.kept))
	if text == "" {
		return ""
	}
	if len(text) > 300 {
		text = text[:300] + "…"
	}
	return fmt.Sprintf(": %q", text)
}
