package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"text/tabwriter"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// view is the state as the spec has it, and what runc's users find beside it.
type view struct {
	specs.State
	Rootfs  string    `json:"rootfs"`
	Created time.Time `json:"created"`
	Owner   string    `json:"owner"`
}

func (k *container) view() view {
	v := view{State: specs.State{Version: specs.Version, ID: k.ID, Status: k.status(), Bundle: k.Bundle, Annotations: k.spec.Annotations},
		Rootfs: k.Rootfs, Created: k.Created}
	if v.Status != specs.StateStopped {
		v.Pid = k.Pid
	}
	return v
}

func (c *call) state(f *flags, args []string) error {
	rest, err := f.take(args, 1, 1)
	if err != nil {
		return err
	}
	k, err := c.open(rest[0])
	if err != nil {
		return err
	}
	return show(k.view())
}

func show(v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(append(text, '\n'))
	return err
}

func (c *call) list(f *flags, args []string) error {
	format, quiet := "table", false
	f.text(&format, "table or json", "format", "f")
	f.yes(&quiet, "ids alone", "quiet", "q")
	if _, err := f.take(args, 0, 0); err != nil {
		return err
	}
	entries, err := os.ReadDir(c.root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	all := []view{}
	for _, e := range entries {
		k, err := c.open(e.Name())
		if err != nil { // being made, being removed, or broken: the others are still worth telling
			continue
		}
		all = append(all, k.view())
	}
	switch {
	case quiet:
		for _, v := range all {
			fmt.Fprintln(os.Stdout, v.ID)
		}
		return nil
	case format == "json":
		return json.NewEncoder(os.Stdout).Encode(all)
	}
	w := tabwriter.NewWriter(os.Stdout, 12, 1, 3, ' ', 0)
	fmt.Fprintln(w, "ID\tPID\tSTATUS\tBUNDLE\tCREATED")
	for _, v := range all {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\n", v.ID, v.Pid, v.Status, v.Bundle, v.Created.Format(time.RFC3339))
	}
	return w.Flush()
}
