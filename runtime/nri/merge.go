package nri

import (
	"maps"
	"slices"
	"strings"

	"worknode/fault"
)

// merged is what all plugins together want in answer to one request. Each plugin sees what those before it have changed.
type merged struct {
	create *Container // being created, as the next plugin sees it; nil for other requests
	adjust *Adjustment

	update  string     // container that the request updates; empty for other requests
	limits  *Resources // its limits, as the next plugin sees them
	updates []*Update  // of other containers

	owners owners
}

func mergeCreate(c *Container) *merged {
	if c.Linux == nil {
		c.Linux = &LinuxContainer{}
	}
	if c.Linux.Resources == nil {
		c.Linux.Resources = &Resources{}
	}
	return &merged{create: c, adjust: &Adjustment{Linux: &LinuxAdjustment{}}, owners: owners{}}
}

func mergeUpdate(id string, limits *Resources) *merged {
	return &merged{update: id, limits: limits, owners: owners{}}
}

// entry is one of a keyed collection; a key that begins with "-" names one to remove.
type entry[T any] struct {
	key   string
	value T
}

// keyed lays the entries that one plugin wants over those wanted so far and over those that the container has.
func keyed[T any](m *merged, f field, plugin string, want, wanted, has []entry[T]) (newWanted, newHas []entry[T], err error) {
	id := m.create.ID
	gone, set := map[string]bool{}, map[string]bool{}
	var add []entry[T]
	for _, e := range want {
		if key, ok := strings.CutPrefix(e.key, "-"); ok {
			gone[key] = true
			m.owners.clear(id, f, key, plugin)
		} else {
			set[e.key] = true
			add = append(add, e)
		}
	}
	for _, e := range add {
		if err := m.owners.claim(id, f, e.key, plugin); err != nil {
			return nil, nil, err
		}
	}
	newWanted = slices.DeleteFunc(slices.Clone(wanted), func(e entry[T]) bool { return gone[e.key] })
	newHas = slices.DeleteFunc(slices.Clone(has), func(e entry[T]) bool { return gone[e.key] || set[e.key] })
	for _, e := range want {
		if key, ok := strings.CutPrefix(e.key, "-"); ok && !set[key] {
			newWanted = append(newWanted, e)
		}
	}
	return append(newWanted, add...), append(newHas, add...), nil
}

func entries[T any](list []T, key func(T) string) []entry[T] {
	var out []entry[T]
	for _, v := range list {
		out = append(out, entry[T]{key(v), v})
	}
	return out
}

func values[T any](list []entry[T]) []T {
	var out []T
	for _, e := range list {
		out = append(out, e.value)
	}
	return out
}

func mapEntries[V any](m map[string]V) []entry[V] {
	var out []entry[V]
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, entry[V]{k, m[k]})
	}
	return out
}

func mapOf[V any](list []entry[V]) map[string]V {
	out := map[string]V{}
	for _, e := range list {
		out[e.key] = e.value
	}
	return out
}

// list merges a list of things with names.
func list[T any](m *merged, f field, plugin string, want []T, wanted, has *[]T, key func(T) string) error {
	if len(want) == 0 {
		return nil
	}
	w, h, err := keyed(m, f, plugin, entries(want, key), entries(*wanted, key), entries(*has, key))
	if err == nil {
		*wanted, *has = values(w), values(h)
	}
	return err
}

func table[V any](m *merged, f field, plugin string, want map[string]V, wanted, has *map[string]V) error {
	if len(want) == 0 {
		return nil
	}
	w, h, err := keyed(m, f, plugin, mapEntries(want), mapEntries(*wanted), mapEntries(*has))
	if err == nil {
		*wanted, *has = mapOf(w), mapOf(h)
	}
	return err
}

// simple merges a field that is there as a whole.
func simple[T any](m *merged, f field, plugin string, want *T, to ...**T) error {
	if want == nil {
		return nil
	}
	if err := m.owners.claim(m.create.ID, f, "", plugin); err != nil {
		return err
	}
	for _, p := range to {
		*p = want
	}
	return nil
}

// addAdjustment merges what one plugin wants of the container that is being created.
func (m *merged) addAdjustment(a *Adjustment, plugin string) error {
	if a == nil {
		return nil
	}
	c, out := m.create, m.adjust
	steps := []func() error{
		func() error { return table(m, fAnnotations, plugin, a.Annotations, &out.Annotations, &c.Annotations) },
		func() error {
			return list(m, fMounts, plugin, a.Mounts, &out.Mounts, &c.Mounts, func(v *Mount) string { return v.Destination })
		},
		func() error { return m.addEnv(a.Env, plugin) },
		func() error { return m.addArgs(a.Args, plugin) },
		func() error { m.addHooks(a.Hooks, plugin); return nil },
		func() error { return m.addRlimits(a.Rlimits, plugin) },
		func() error { return m.addCDI(a.CDI, plugin) },
		func() error { return m.addLinux(a.Linux, plugin) },
	}
	for _, do := range steps {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

func (m *merged) addEnv(want []*KeyValue, plugin string) error {
	var has []*KeyValue
	for _, e := range m.create.Env {
		key, value, _ := strings.Cut(e, "=")
		has = append(has, &KeyValue{key, value})
	}
	if err := list(m, fEnv, plugin, want, &m.adjust.Env, &has, func(v *KeyValue) string { return v.Key }); err != nil {
		return err
	}
	m.create.Env = nil
	for _, e := range has {
		m.create.Env = append(m.create.Env, e.Key+"="+e.Value)
	}
	return nil
}

// addArgs replaces the command; a first argument that is empty takes it away from another plugin.
func (m *merged) addArgs(want []string, plugin string) error {
	if len(want) == 0 {
		return nil
	}
	if want[0] == "" {
		m.owners.clear(m.create.ID, fArgs, "", plugin)
		want = want[1:]
	}
	if err := m.owners.claim(m.create.ID, fArgs, "", plugin); err != nil {
		return err
	}
	m.create.Args, m.adjust.Args = want, want
	return nil
}

func (m *merged) addHooks(want *Hooks, plugin string) {
	if want == nil {
		return
	}
	for _, to := range []**Hooks{&m.adjust.Hooks, &m.create.Hooks} {
		old := *to
		if old == nil {
			old = &Hooks{}
		}
		*to = &Hooks{
			Prestart: slices.Concat(old.Prestart, want.Prestart), CreateRuntime: slices.Concat(old.CreateRuntime, want.CreateRuntime),
			CreateContainer: slices.Concat(old.CreateContainer, want.CreateContainer), StartContainer: slices.Concat(old.StartContainer, want.StartContainer),
			Poststart: slices.Concat(old.Poststart, want.Poststart), Poststop: slices.Concat(old.Poststop, want.Poststop),
		}
	}
	m.owners.share(m.create.ID, fHooks, plugin)
}

func (m *merged) addRlimits(want []*Rlimit, plugin string) error {
	for _, l := range want {
		if err := m.owners.claim(m.create.ID, fRlimits, l.Type, plugin); err != nil {
			return err
		}
		m.create.Rlimits, m.adjust.Rlimits = append(m.create.Rlimits, l), append(m.adjust.Rlimits, l)
	}
	return nil
}

// addCDI adds devices; they are not shown to other plugins, as nobody knows yet what they mean.
func (m *merged) addCDI(want []*CDIDevice, plugin string) error {
	for _, d := range want {
		if err := m.owners.claim(m.create.ID, fCDI, d.Name, plugin); err != nil {
			return err
		}
		m.adjust.CDI = append(m.adjust.CDI, d)
	}
	return nil
}

func (m *merged) addLinux(l *LinuxAdjustment, plugin string) error {
	if l == nil {
		return nil
	}
	has, out := m.create.Linux, m.adjust.Linux
	steps := []func() error{
		func() error {
			return list(m, fDevices, plugin, l.Devices, &out.Devices, &has.Devices, func(d *Device) string { return d.Path })
		},
		func() error {
			return list(m, fNamespace, plugin, l.Namespaces, &out.Namespaces, &has.Namespaces, func(n *Namespace) string { return n.Type })
		},
		func() error { return table(m, fSysctl, plugin, l.Sysctl, &out.Sysctl, &has.Sysctl) },
		func() error { return table(m, fNetDevices, plugin, l.NetDevices, &out.NetDevices, &has.NetDevices) },
		func() error { return m.addCgroup(l.CgroupsPath, plugin) },
		func() error {
			return simple(m, fOOMScoreAdj, plugin, l.OOMScoreAdj, &out.OOMScoreAdj, &has.OOMScoreAdj)
		},
		func() error { return simple(m, fIOPriority, plugin, l.IOPriority, &out.IOPriority, &has.IOPriority) },
		func() error {
			return simple(m, fSeccomp, plugin, l.SeccompPolicy, &out.SeccompPolicy, &has.SeccompPolicy)
		},
		func() error { return simple(m, fScheduler, plugin, l.Scheduler, &out.Scheduler, &has.Scheduler) },
		func() error { return simple(m, fMemoryPolicy, plugin, l.MemoryPolicy, &out.MemoryPolicy) },
		func() error { return m.addRdt(l.Rdt, plugin) },
		func() error {
			if l.Resources == nil {
				return nil
			}
			if out.Resources == nil {
				out.Resources = &Resources{}
			}
			return m.addLimits(m.create.ID, l.Resources, plugin, has.Resources, out.Resources)
		},
	}
	for _, do := range steps {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

func (m *merged) addCgroup(path, plugin string) error {
	if path == "" {
		return nil
	}
	if err := m.owners.claim(m.create.ID, fCgroupsPath, "", plugin); err != nil {
		return err
	}
	m.create.Linux.CgroupsPath, m.adjust.Linux.CgroupsPath = path, path
	return nil
}

func (m *merged) addRdt(want *Rdt, plugin string) error {
	if want == nil {
		return nil
	}
	out := &Rdt{}
	if want.Remove {
		out.Remove = true
		for _, f := range []field{fRdtClosID, fRdtSchemata, fRdtMonitoring} {
			m.owners.clear(m.create.ID, f, "", plugin)
		}
	} else if m.adjust.Linux.Rdt != nil {
		*out = *m.adjust.Linux.Rdt
	}
	m.adjust.Linux.Rdt = out
	if err := simple(m, fRdtClosID, plugin, want.ClosID, &out.ClosID); err != nil {
		return err
	}
	if err := simple(m, fRdtSchemata, plugin, want.Schemata, &out.Schemata); err != nil {
		return err
	}
	return simple(m, fRdtMonitoring, plugin, want.EnableMonitoring, &out.EnableMonitoring)
}

// addUpdates merges changes of containers that exist. A change that conflicts and may fail is left out.
func (m *merged) addUpdates(list []*Update, plugin string) error {
	for _, u := range list {
		if m.create != nil && m.create.ID == u.ID {
			return fault.New(fault.Invalid, "NRI plugin %s updates container %s, which is just being created (it has to adjust it)", plugin, u.ID)
		}
		if u.Linux == nil || u.Linux.Resources == nil {
			continue
		}
		if err := m.addUpdate(u, plugin); err != nil && !u.IgnoreFailure {
			return err
		}
	}
	return nil
}

func (m *merged) addUpdate(u *Update, plugin string) error {
	if u.ID == m.update {
		next := m.limits.clone()
		if err := m.addLimits(u.ID, u.Linux.Resources, plugin, next); err != nil {
			return err
		}
		m.limits = next
		return nil
	}
	for _, have := range m.updates {
		if have.ID == u.ID {
			next := have.Linux.Resources.clone()
			if err := m.addLimits(u.ID, u.Linux.Resources, plugin, next); err != nil {
				return err
			}
			have.Linux.Resources, have.IgnoreFailure = next, have.IgnoreFailure && u.IgnoreFailure
			return nil
		}
	}
	next := &Resources{}
	if err := m.addLimits(u.ID, u.Linux.Resources, plugin, next); err != nil {
		return err
	}
	m.updates = append(m.updates, &Update{ID: u.ID, Linux: &LinuxUpdate{Resources: next}, IgnoreFailure: u.IgnoreFailure})
	return nil
}
