package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"worknode/task"
)

// cleanLimit bounds the end of one sandbox, its containers' grace included.
const cleanLimit = 30 * time.Second

// Cleanup ends every sandbox with its containers and takes down all that a runtime with these options made on the
// machine: processes, namespaces, cgroups, the pod network and live records. Images stay. No such runtime may be serving.
// Errors: what stays behind. Repeat: safe. Crash: repeat.
func Cleanup(ctx context.Context, opt Options) error {
	if err := opt.fill(); err != nil {
		return err
	}
	listener, err := listen(opt.Socket) // holds a second runtime off meanwhile
	if err != nil {
		return err
	}
	defer os.Remove(opt.Socket)
	defer listener.Close()
	tasks := task.New(ctx)
	l := &loop{opt: opt, tasks: tasks, lives: map[string]*life{}}
	if err := l.open(ctx); err != nil {
		tasks.Stop()
		return err
	}
	defer func() {
		tasks.Stop() // first, or the monitor's end would look like an accident
		l.close()
	}()
	if err := l.recover(ctx); err != nil {
		return err
	}
	tasks.Go("monitor", func(ctx context.Context) { l.keeper.Run(ctx, l.exit) })
	var errs []error
	for _, s := range l.store.Sandboxes() {
		ctx, stop := context.WithTimeout(ctx, cleanLimit)
		if err := l.RemovePodSandbox(ctx, s.ID); err != nil {
			errs = append(errs, fmt.Errorf("sandbox %s: %w", s.ID, err))
		}
		stop()
	}
	slog.Info("runtime is cleaned up", "left", len(errs))
	return errors.Join(errs...)
}
