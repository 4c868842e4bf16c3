// Package wire is the protocol between a container runtime and worknode-monitor, the keeper of its containers.
//
// A connection is a unix stream socket. Each frame is a 4-byte little-endian length and a JSON object; file
// descriptors travel with the frame's first byte (SCM_RIGHTS). The runtime sends Requests, the monitor answers each
// with a Reply of the same Seq and sends Exits by itself (Reply with Seq 0). The protocol is additive: unknown fields
// are ignored, and a monitor serves the version of its own build and the one before.
//
// It is not a place for policy: what the runtime hands over is parsed, resolved and ready to apply.
package wire

import "time"

// Version is the protocol version of this build. What each added:
//
//	1  all but the following
//	2  Upgrade, and Hello.Build in the answer
const Version = 2

// MaxFrame bounds one frame, in bytes.
const MaxFrame = 4 << 20

// MaxFiles bounds the descriptors in one frame (the kernel's SCM_MAX_FD is 253).
const MaxFiles = 16

// Request is one call; exactly one of the pointers is set.
type Request struct {
	Seq    uint64
	Hello  *Hello  `json:",omitempty"`
	Start  *Start  `json:",omitempty"`
	Signal *Signal `json:",omitempty"`
	Reopen *Reopen `json:",omitempty"`
	Attach *Attach `json:",omitempty"`
	Resize *Resize `json:",omitempty"`
	List   *List   `json:",omitempty"`
	Adopt  *Adopt  `json:",omitempty"`
	Forget *Forget `json:",omitempty"`
	Quit   *Quit   `json:",omitempty"`

	Upgrade *Upgrade `json:",omitempty"` // since 2
}

// Reply answers the Request of the same Seq; with Seq 0 it carries an Exit nobody asked for.
type Reply struct {
	Seq     uint64
	Error   *Error    `json:",omitempty"`
	Hello   *Hello    `json:",omitempty"`
	Started *Process  `json:",omitempty"`
	List    []Process `json:",omitempty"`
	Exit    *Exit     `json:",omitempty"`

	// StdinClosed says that a StdinOnce process has had its one session: every keeper must close its duplicate of the
	// stdin pipe, or the process never reads end of file. The client package does so by itself.
	StdinClosed string `json:",omitempty"`
}

// Error is a failed Request. Kind is a fault.Kind; Stage names the step of init that failed ("mount", "exec", ...).
type Error struct {
	Kind  int
	Stage string `json:",omitempty"`
	Text  string
}

// Hello opens a connection; both sides state their protocol version.
type Hello struct {
	Version int
	Pid     int    `json:",omitempty"`
	Build   string `json:",omitempty"` // the monitor's source revision; empty before version 2
}

// Start clones a process and returns once it has executed its program, or failed to.
//
// A container (Join empty) gets new namespaces and a root of its own. An exec (Join = a running container's ID) enters
// that container's namespaces, root and cgroup. Without Terminal the monitor makes the pipes of a container and copies
// stdout and stderr to LogPath; the reply's frame carries the keeper's descriptors (see Process.Files). An exec brings its
// stdio instead: the request's frame carries stdin, stdout, stderr in this order (with Terminal: none, and the reply
// carries the pty master, which the monitor does not keep: closing it hangs up the session). An exec without
// Init.Cgroup enters the container's. Its own Init.New and Init.Join are empty.
type Start struct {
	ID        string // unique until forgotten
	Join      string `json:",omitempty"`
	Terminal  bool   `json:",omitempty"`
	Stdin     bool   `json:",omitempty"` // keep a stdin pipe open for Attach; otherwise stdin is /dev/null
	StdinOnce bool   `json:",omitempty"` // close stdin when the first attach session ends
	LogPath   string `json:",omitempty"` // CRI log file, created if absent; empty: output is drained and dropped
	OOMFile   string `json:",omitempty"` // memory.events (v2) or memory.oom_control (v1), read at exit
	Hooks     *Hooks `json:",omitempty"` // of a container

	Foreign *Foreign `json:",omitempty"` // another OCI runtime makes the process; Init is then that runtime's command
	Init    Init
}

// Foreign has another OCI runtime make a process, which then is the monitor's like any other: it falls to the monitor as
// the nearest subreaper. The command in Init.Args (create, or exec --detach) runs with the process' stdio, and with
// Init.Root in a mount namespace of its own, where the root filesystem lies on Root.Path; it leaves the process' number
// in PidFile. Then comes Start, if there is any.
type Foreign struct {
	Start   []string      `json:",omitempty"` // command line that runs the program
	PidFile string        // written by the first command
	Log     string        `json:",omitempty"` // where the commands report errors, a JSON object a line: the last is the reason
	Console string        `json:",omitempty"` // with Terminal: unix socket to take the terminal's master from
	Limit   time.Duration // for each of the commands; longer means that it hangs and is killed
}

// Process is one process that the monitor keeps, running or exited and not yet forgotten.
//
// Files names the descriptors in the frame, in order: the runtime keeps them so that it can rebuild a killed monitor
// with Adopt, and never reads or writes them itself: "stdout", "stderr" (pipe read ends), "stdin" (pipe write end),
// "pty" (master), "pidfd", "journal" (the log copier's shared page).
type Process struct {
	ID        string
	Pid       int
	StartTime uint64    // clock ticks since boot, /proc/PID/stat field 22: with Pid it names the process for ever
	Started   time.Time // wall clock, just after execve
	LogPath   string    `json:",omitempty"`
	OOMFile   string    `json:",omitempty"`
	Terminal  bool      `json:",omitempty"`
	Stdin     bool      `json:",omitempty"`
	StdinOnce bool      `json:",omitempty"`
	Files     []string  `json:",omitempty"`
	Cgroup    []string  `json:",omitempty"` // the cgroup.procs files it was put into (Init.Cgroup)
	Join      string    `json:",omitempty"` // an exec: the container it runs in
	Warnings  []string  `json:",omitempty"` // only in the answer to Start: what init had to leave out, for the log
	Exit      *Exit     `json:",omitempty"`
}

// Exit is how a process ended. It is repeated on every new connection until forgotten. An exit that a predecessor
// recorded before it was killed is repeated only by List and Adopt: Adopt first, as output may wait in the pipes.
type Exit struct {
	ID        string
	Code      int  // exit code, or 128+signal
	Signal    int  `json:",omitempty"`
	OOMKilled bool `json:",omitempty"` // the kernel's OOM killer chose a process of this cgroup
	Unknown   bool `json:",omitempty"` // nobody could learn the code (the monitor died, old kernel); Code is then 255
	At        time.Time
}

// Signal sends a signal to the process, or with All to every process in its pid namespace or cgroup.
type Signal struct {
	ID     string
	Signal int
	All    bool `json:",omitempty"`
}

// Reopen makes the log copier open LogPath anew (after a rename). It answers when the new file exists and no further
// byte goes to the old one.
type Reopen struct{ ID string }

// Attach connects a client to a container's terminal or pipes. The frame carries, as told by the flags and in this
// order: a readable stdin, a writable stdout, a writable stderr. The monitor closes them when the client or the
// container ends. A client that does not read is dropped; the container never waits for it.
type Attach struct {
	ID                    string
	Stdin, Stdout, Stderr bool
}

// Resize sets the terminal's size in characters.
type Resize struct {
	ID            string
	Width, Height uint16
}

// List asks for all processes; each Process is sent in a frame of its own with its keeper descriptors (same Seq), the
// last frame has an empty List.
type List struct{}

// Adopt hands a process of a dead monitor to this one; the frame carries the descriptors that Process.Files names.
// The exit code then comes from PIDFD_GET_INFO (kernel 6.15), else it is Unknown.
type Adopt struct{ Process Process }

// Forget drops an exited process and its record.
type Forget struct{ ID string }

// Quit ends the monitor if it keeps no running process, and is refused (Busy) otherwise.
type Quit struct{}

// Upgrade makes the monitor execute another binary in its place: pid, children, connections and every descriptor stay.
// The answer is a Hello by the new build, over the same connection.
// Errors: Invalid or Unsupported for a binary that cannot take over, Busy if something does not come to rest in time;
// the old build then goes on as if nothing had been asked.
type Upgrade struct {
	Binary string // absolute path of a worknode-monitor
}

// Init is what the process does to itself between clone and execve, all of it resolved.
// Source: OCI runtime spec 1.2, config.md and config-linux.md; each field names its section's name there.
type Init struct {
	Cgroup       []string          // cgroup.procs files to write "0" into before anything else
	Join         map[string]string `json:",omitempty"` // namespaces to enter: net, ipc, uts, pid, user, cgroup, mnt -> path
	New          []string          `json:",omitempty"` // namespaces to create: mnt (always for a container of CRI), pid, cgroup, ipc, uts, net, time
	Root         Root              `json:",omitzero"`
	Mounts       []Mount           `json:",omitempty"` // in order, destinations inside the new root
	Devices      []Device          `json:",omitempty"` // nodes to make below the new root's /dev
	Masked       []string          `json:",omitempty"`
	Readonly     []string          `json:",omitempty"`
	Sysctl       map[string]string `json:",omitempty"` // dotted names; applied inside the namespaces
	Hostname     string            `json:",omitempty"` // only with a new uts namespace
	Args         []string
	Env          []string
	Cwd          string // created if absent, as root of the container
	UID, GID     uint32
	Groups       []uint32 `json:",omitempty"`
	Umask        *uint32  `json:",omitempty"`
	Caps         Caps     `json:",omitzero"`
	NoNewPrivs   bool     `json:",omitempty"`
	Seccomp      []byte   `json:",omitempty"` // struct sock_filter array, native byte order
	SeccompFlags uint32   `json:",omitempty"` // SECCOMP_FILTER_FLAG_*
	Rlimits      []Rlimit `json:",omitempty"`
	OOMScoreAdj  *int     `json:",omitempty"` // nil: 0, for an exec the container's; clamped where CAP_SYS_RESOURCE is missing
	IDMap        *IDMap   `json:",omitempty"` // with a user namespace in Join: what it maps; for an exec: what the container's maps
	Extra        Extra    `json:",omitzero"`
}

// IDMap is the mapping of a user namespace: its user 0 is the host's UID, its group 0 the host's GID, and so on
// for Size ids. UIDs and GIDs replace all three where that is not enough. The ids elsewhere in Init are those inside.
type IDMap struct {
	UID, GID, Size uint32
	UIDs, GIDs     []IDRange `json:",omitempty"`
}

// IDRange maps Size ids: Inside is Host, and so on.
type IDRange struct{ Inside, Host, Size uint32 }

// HostUID is the host's user for one inside, itself if it is not mapped.
func (m *IDMap) HostUID(id uint32) uint32 { return hostID(m.UIDs, m.UID, id) }

// HostGID is the host's group for one inside.
func (m *IDMap) HostGID(id uint32) uint32 { return hostID(m.GIDs, m.GID, id) }

func hostID(ranges []IDRange, first, id uint32) uint32 {
	for _, r := range ranges {
		if id >= r.Inside && id-r.Inside < r.Size {
			return r.Host + id - r.Inside
		}
	}
	if len(ranges) > 0 {
		return id
	}
	return first + id
}

// Scheduler is struct sched_attr. Source: sched_setattr(2).
type Scheduler struct {
	Policy                    uint32
	Flags                     uint64
	Nice                      int32
	Priority                  uint32
	Runtime, Deadline, Period uint64 // nanoseconds
}

// MemoryPolicy is what set_mempolicy(2) takes: MPOL_* with flags, and a mask of NUMA nodes in words of 64.
type MemoryPolicy struct {
	Mode  uint32
	Nodes []uint64 `json:",omitempty"`
}

// Extra is what only the OCI command line asks for; see the fields of the same names in the OCI runtime spec.
type Extra struct {
	Domainname  string        `json:",omitempty"` // with a new uts namespace
	TimeOffsets string        `json:",omitempty"` // with a new time namespace: lines for /proc/self/timens_offsets
	Scheduler   *Scheduler    `json:",omitempty"`
	IOPriority  *int          `json:",omitempty"` // class and level as ioprio_set(2) takes them
	Personality *uint64       `json:",omitempty"`
	Memory      *MemoryPolicy `json:",omitempty"`
	AppArmor    string        `json:",omitempty"` // profile to change to at execve
	SELinux     string        `json:",omitempty"` // label of the process after execve
	FirstCPUs   []uint64      `json:",omitempty"` // mask for the way into the cgroup
	CPUs        []uint64      `json:",omitempty"` // mask for the program
	Width       uint16        `json:",omitempty"` // of the terminal, in characters
	Height      uint16        `json:",omitempty"`
}

// Root is the container's root filesystem. With Lower it is an overlay that init mounts in its own mount namespace, so
// the host's mount table stays clean; with Path alone it is a bind mount of that directory.
type Root struct {
	Base        string   `json:",omitempty"` // directory the Lower names are relative to (keeps the option string short)
	Lower       []string `json:",omitempty"` // topmost first
	Upper, Work string   `json:",omitempty"` // empty Upper: read-only overlay
	Path        string   `json:",omitempty"`
	Readonly    bool     `json:",omitempty"`
	IDMap       bool     `json:",omitempty"` // the files of Lower or Path belong to host ids: show them mapped (Upper is written as it is)
	Propagation string   `json:",omitempty"` // private, rslave (default), rshared
}

// Mount is one entry of the OCI "mounts" list, options already split.
type Mount struct {
	Source, Destination, Type string
	Flags                     uintptr   // MS_*
	Data                      string    `json:",omitempty"`
	Propagation               []uintptr `json:",omitempty"` // MS_PRIVATE, MS_SLAVE|MS_REC, ...
	Clear                     uintptr   `json:",omitempty"` // MS_* that a bind mount must not have, though its source has
	RecReadonly               bool      `json:",omitempty"` // mount_setattr, recursive
	RecSet, RecClear          uint64    `json:",omitempty"` // MOUNT_ATTR_* for the mount and all below it
	File                      bool      `json:",omitempty"` // source is a file: make a file as mount point
	IDMap                     bool      `json:",omitempty"` // bind or Lower: show the owners mapped into the container\'s user namespace
	IDMapFrom                 string    `json:",omitempty"` // path of a user namespace whose mapping a bind mount gets
	IDMapRec                  bool      `json:",omitempty"` // the mounts below it too
	CopyUp                    bool      `json:",omitempty"` // a tmpfs starts with what the root filesystem has at its place
	Lower                     []string  `json:",omitempty"` // Type overlay: two layers or more, topmost first, relative to Root.Base; read-only
}

// Device is a device node.
type Device struct {
	Path         string
	Type         string // c, b, p
	Major, Minor int64
	Mode         uint32
	UID, GID     uint32
}

// Caps are capability sets as bit masks (bit n = capability n).
type Caps struct{ Bounding, Effective, Permitted, Inheritable, Ambient uint64 }

// Rlimit is one resource limit; Type is RLIMIT_* by number.
type Rlimit struct {
	Type       int
	Soft, Hard uint64
}
