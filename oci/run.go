package oci

import "worknode/fault"

// runAll is create and start and, unless detached, the wait for the end and delete.
func (c *call) runAll(f *flags, args []string) error {
	var m making
	var detach, keep bool
	m.flags(f)
	f.yes(&detach, "return once the program runs", "detach", "d")
	f.yes(&keep, "do not delete the container when it ends", "keep")
	rest, err := f.take(args, 1, 1)
	if err != nil {
		return err
	}
	if m.console != "" && !detach {
		return fault.New(fault.Invalid, "run: --console-socket is for --detach, otherwise the terminal is the caller's")
	}
	k, child, err := c.make(rest[0], m, detach)
	if err != nil {
		return err
	}
	end := func() error {
		unlock, err := k.lock()
		if err != nil {
			return err
		}
		defer unlock()
		return k.remove(c, true)
	}
	if err := c.begin(k, child, m.console, detach); err != nil {
		if left := end(); left != nil {
			c.warn("%v", left)
		}
		return err
	}
	if detach || keep && c.code != 0 {
		return nil
	}
	if keep {
		return nil
	}
	return end()
}

// begin starts a made container and, unless detached, waits for its end.
func (c *call) begin(k *container, child *born, console string, detach bool) error {
	if detach {
		if err := child.pass(console); err != nil {
			return err
		}
		return k.start(c)
	}
	restore := child.hold()
	if err := k.start(c); err != nil {
		_ = k.end()
		restore()
		return err
	}
	c.code = child.attend()
	restore()
	return nil
}
