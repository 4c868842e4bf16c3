package nri

// The messages of NRI's protocol, version v1alpha1, as of release 0.12. Names are upstream's where they are not longer than
// they need to be; the tags are protobuf's field numbers. Source: github.com/containerd/nri, pkg/api/api.proto.

// Opt is a value that may be absent (nil): upstream's OptionalInt64 and its kin.
type Opt[T any] struct {
	Value T `nri:"1"`
}

// Some is a present value.
func Some[T any](p *T) *Opt[T] {
	if p == nil {
		return nil
	}
	return &Opt[T]{*p}
}

// Get is the value, nil if absent.
func (o *Opt[T]) Get() *T {
	if o == nil {
		return nil
	}
	return new(o.Value)
}

type empty struct{}

type registerRequest struct {
	Name    string `nri:"1"`
	Index   string `nri:"2"`
	Version string `nri:"3"`
}

type configureRequest struct {
	Config              string `nri:"1"`
	RuntimeName         string `nri:"2"`
	RuntimeVersion      string `nri:"3"`
	RegistrationTimeout int64  `nri:"4"` // milliseconds
	RequestTimeout      int64  `nri:"5"` // milliseconds
	NRIVersion          string `nri:"6"`
}

type configureResponse struct {
	Events int32          `nri:"2"`
	Policy *failurePolicy `nri:"3"`
}

// failurePolicy is what becomes of a request that a plugin does not answer, and of the plugin.
type failurePolicy struct {
	FailRequest   bool `nri:"1"`
	KeepConnected bool `nri:"2"`
}

type synchronizeRequest struct {
	Pods       []*Pod       `nri:"1"`
	Containers []*Container `nri:"2"`
	More       bool         `nri:"3"`
}

type synchronizeResponse struct {
	Update []*Update `nri:"1"`
	More   bool      `nri:"2"`
}

// podRequest is any request about a pod; only an update has resources.
type podRequest struct {
	Pod       *Pod       `nri:"1"`
	Overhead  *Resources `nri:"2"`
	Resources *Resources `nri:"3"`
}

// containerRequest is any request about a container; only an update has resources.
type containerRequest struct {
	Pod       *Pod       `nri:"1"`
	Container *Container `nri:"2"`
	Resources *Resources `nri:"3"`
}

type createResponse struct {
	Adjust *Adjustment `nri:"1"`
	Update []*Update   `nri:"2"`
	Evict  []*Eviction `nri:"3"`
}

// updateResponse answers updates and stops.
type updateResponse struct {
	Update []*Update   `nri:"1"`
	Evict  []*Eviction `nri:"2"`
}

type updateContainersRequest struct {
	Update []*Update   `nri:"1"`
	Evict  []*Eviction `nri:"2"`
}

type updateContainersResponse struct {
	Failed []*Update `nri:"1"`
}

type stateChange struct {
	Event     int32      `nri:"1"`
	Pod       *Pod       `nri:"2"`
	Container *Container `nri:"3"`
}

type validateRequest struct {
	Pod       *Pod              `nri:"1"`
	Container *Container        `nri:"2"` // as it was before any plugin
	Adjust    *Adjustment       `nri:"3"`
	Update    []*Update         `nri:"4"`
	Owners    *owningPlugins    `nri:"5"`
	Plugins   []*pluginInstance `nri:"6"`
}

type validateResponse struct {
	Reject bool   `nri:"1"`
	Reason string `nri:"2"`
}

type pluginInstance struct {
	Name  string `nri:"1"`
	Index string `nri:"2"`
}

type owningPlugins struct {
	Owners map[string]*fieldOwners `nri:"1"`
}

type fieldOwners struct {
	Simple   map[int32]string          `nri:"1"`
	Compound map[int32]*compoundOwners `nri:"2"`
}

type compoundOwners struct {
	Owners map[string]string `nri:"1"`
}

// Pod is a pod as plugins see it.
type Pod struct {
	ID          string            `nri:"1"`
	Name        string            `nri:"2"`
	UID         string            `nri:"3"`
	Namespace   string            `nri:"4"`
	Labels      map[string]string `nri:"5"`
	Annotations map[string]string `nri:"6"`
	Handler     string            `nri:"7"`
	Linux       *LinuxPod         `nri:"8"`
	Pid         uint32            `nri:"9"`
	IPs         []string          `nri:"10"`
}

// LinuxPod is a pod's share of the node.
type LinuxPod struct {
	Overhead     *Resources   `nri:"1"`
	Resources    *Resources   `nri:"2"`
	CgroupParent string       `nri:"3"`
	CgroupsPath  string       `nri:"4"`
	Namespaces   []*Namespace `nri:"5"`
}

// States of a container.
const (
	StateUnknown = 0
	StateCreated = 1
	StateRunning = 3
	StateStopped = 4
)

// Container is a container as plugins see it.
type Container struct {
	ID          string            `nri:"1"`
	Pod         string            `nri:"2"`
	Name        string            `nri:"3"`
	State       int32             `nri:"4"`
	Labels      map[string]string `nri:"5"`
	Annotations map[string]string `nri:"6"`
	Args        []string          `nri:"7"`
	Env         []string          `nri:"8"`
	Mounts      []*Mount          `nri:"9"`
	Hooks       *Hooks            `nri:"10"`
	Linux       *LinuxContainer   `nri:"11"`
	Pid         uint32            `nri:"12"`
	Rlimits     []*Rlimit         `nri:"13"`
	CreatedAt   int64             `nri:"14"` // these three in nanoseconds since 1970
	StartedAt   int64             `nri:"15"`
	FinishedAt  int64             `nri:"16"`
	ExitCode    int32             `nri:"17"`
	Reason      string            `nri:"18"`
	Message     string            `nri:"19"`
	CDI         []*CDIDevice      `nri:"20"`
	User        *User             `nri:"21"`
	Image       *Image            `nri:"22"`
}

// Image names a container's image.
type Image struct {
	Name         string `nri:"1"`
	Digest       string `nri:"2"`
	ConfigDigest string `nri:"3"`
}

// LinuxContainer is the rest of it.
type LinuxContainer struct {
	Namespaces     []*Namespace          `nri:"1"`
	Devices        []*Device             `nri:"2"`
	Resources      *Resources            `nri:"3"`
	OOMScoreAdj    *Opt[int64]           `nri:"4"`
	CgroupsPath    string                `nri:"5"`
	IOPriority     *IOPriority           `nri:"6"`
	SeccompProfile *SecurityProfile      `nri:"7"`
	SeccompPolicy  *Seccomp              `nri:"8"`
	Sysctl         map[string]string     `nri:"9"`
	NetDevices     map[string]*NetDevice `nri:"10"`
	Scheduler      *Scheduler            `nri:"11"`
	Rdt            *Rdt                  `nri:"12"`
}

// Adjustment is what a plugin wants of a container that is being created. A key that begins with "-" is to be removed.
type Adjustment struct {
	Annotations map[string]string `nri:"2"`
	Mounts      []*Mount          `nri:"3"`
	Env         []*KeyValue       `nri:"4"`
	Hooks       *Hooks            `nri:"5"`
	Linux       *LinuxAdjustment  `nri:"6"`
	Rlimits     []*Rlimit         `nri:"7"`
	CDI         []*CDIDevice      `nri:"8"`
	Args        []string          `nri:"9"`
}

// LinuxAdjustment is the rest of it.
type LinuxAdjustment struct {
	Devices       []*Device             `nri:"1"`
	Resources     *Resources            `nri:"2"`
	CgroupsPath   string                `nri:"3"`
	OOMScoreAdj   *Opt[int64]           `nri:"4"`
	IOPriority    *IOPriority           `nri:"5"`
	SeccompPolicy *Seccomp              `nri:"6"`
	Namespaces    []*Namespace          `nri:"7"`
	Sysctl        map[string]string     `nri:"8"`
	NetDevices    map[string]*NetDevice `nri:"9"`
	Scheduler     *Scheduler            `nri:"10"`
	Rdt           *Rdt                  `nri:"11"`
	MemoryPolicy  *MemoryPolicy         `nri:"12"`
}

// Update changes the resources of a container that exists.
type Update struct {
	ID            string       `nri:"1"`
	Linux         *LinuxUpdate `nri:"2"`
	IgnoreFailure bool         `nri:"3"`
}

// LinuxUpdate holds an Update's resources.
type LinuxUpdate struct {
	Resources *Resources `nri:"1"`
}

// Eviction stops a container that nobody asked to stop.
type Eviction struct {
	ID     string `nri:"1"`
	Reason string `nri:"2"`
}

// KeyValue is a variable.
type KeyValue struct {
	Key   string `nri:"1"`
	Value string `nri:"2"`
}

// Mount is an OCI mount.
type Mount struct {
	Destination string   `nri:"1"`
	Type        string   `nri:"2"`
	Source      string   `nri:"3"`
	Options     []string `nri:"4"`
}

// Hooks are OCI hooks.
type Hooks struct {
	Prestart        []*Hook `nri:"1"`
	CreateRuntime   []*Hook `nri:"2"`
	CreateContainer []*Hook `nri:"3"`
	StartContainer  []*Hook `nri:"4"`
	Poststart       []*Hook `nri:"5"`
	Poststop        []*Hook `nri:"6"`
}

// Hook is one OCI hook.
type Hook struct {
	Path    string      `nri:"1"`
	Args    []string    `nri:"2"`
	Env     []string    `nri:"3"`
	Timeout *Opt[int64] `nri:"4"` // seconds
}

// Namespace is an OCI namespace.
type Namespace struct {
	Type string `nri:"1"`
	Path string `nri:"2"`
}

// Device is an OCI device.
type Device struct {
	Path     string       `nri:"1"`
	Type     string       `nri:"2"`
	Major    int64        `nri:"3"`
	Minor    int64        `nri:"4"`
	FileMode *Opt[uint32] `nri:"5"`
	UID      *Opt[uint32] `nri:"6"`
	GID      *Opt[uint32] `nri:"7"`
}

// DeviceRule allows or denies a device.
type DeviceRule struct {
	Allow  bool        `nri:"1"`
	Type   string      `nri:"2"`
	Major  *Opt[int64] `nri:"3"`
	Minor  *Opt[int64] `nri:"4"`
	Access string      `nri:"5"`
}

// CDIDevice names a device of CDI.
type CDIDevice struct {
	Name string `nri:"1"`
}

// User is a process's user.
type User struct {
	UID            uint32   `nri:"1"`
	GID            uint32   `nri:"2"`
	AdditionalGids []uint32 `nri:"3"`
}

// Resources are limits; nil and empty mean that nothing is said.
type Resources struct {
	Memory       *Memory           `nri:"1"`
	CPU          *CPU              `nri:"2"`
	Hugepages    []*Hugepage       `nri:"3"`
	BlockioClass *Opt[string]      `nri:"4"`
	RdtClass     *Opt[string]      `nri:"5"`
	Unified      map[string]string `nri:"6"`
	Devices      []*DeviceRule     `nri:"7"`
	Pids         *Pids             `nri:"8"`
}

// Memory limits, in bytes.
type Memory struct {
	Limit            *Opt[int64]  `nri:"1"`
	Reservation      *Opt[int64]  `nri:"2"`
	Swap             *Opt[int64]  `nri:"3"`
	Kernel           *Opt[int64]  `nri:"4"`
	KernelTCP        *Opt[int64]  `nri:"5"`
	Swappiness       *Opt[uint64] `nri:"6"`
	DisableOOMKiller *Opt[bool]   `nri:"7"`
	UseHierarchy     *Opt[bool]   `nri:"8"`
}

// CPU limits; times in microseconds.
type CPU struct {
	Shares          *Opt[uint64] `nri:"1"`
	Quota           *Opt[int64]  `nri:"2"`
	Period          *Opt[uint64] `nri:"3"`
	RealtimeRuntime *Opt[int64]  `nri:"4"`
	RealtimePeriod  *Opt[uint64] `nri:"5"`
	Cpus            string       `nri:"6"`
	Mems            string       `nri:"7"`
}

// Hugepage limits one size of pages, in bytes.
type Hugepage struct {
	PageSize string `nri:"1"`
	Limit    uint64 `nri:"2"`
}

// Pids limits processes.
type Pids struct {
	Limit int64 `nri:"1"`
}

// SecurityProfile is a choice of profile: 0 the runtime's, 1 none, 2 a file.
type SecurityProfile struct {
	Type int32  `nri:"1"`
	Ref  string `nri:"2"`
}

// Rlimit is an OCI rlimit.
type Rlimit struct {
	Type string `nri:"1"`
	Hard uint64 `nri:"2"`
	Soft uint64 `nri:"3"`
}

// IOPriority is an OCI I/O priority; classes are numbered as ioprio_set(2) does.
type IOPriority struct {
	Class    int32 `nri:"1"`
	Priority int32 `nri:"2"`
}

// NetDevice is a network device of the host to give to a container.
type NetDevice struct {
	Name string `nri:"1"`
}

// Scheduler is an OCI scheduler setting; the numbers count through upstream's list of names.
type Scheduler struct {
	Policy   int32   `nri:"1"`
	Nice     int32   `nri:"2"`
	Priority int32   `nri:"3"`
	Flags    []int32 `nri:"4"`
	Runtime  uint64  `nri:"5"`
	Deadline uint64  `nri:"6"`
	Period   uint64  `nri:"7"`
}

// Rdt is Intel's resource control.
type Rdt struct {
	ClosID           *Opt[string]   `nri:"1"`
	Schemata         *Opt[[]string] `nri:"2"`
	EnableMonitoring *Opt[bool]     `nri:"3"`
	Remove           bool           `nri:"4"`
}

// Seccomp is an OCI seccomp profile.
type Seccomp struct {
	DefaultAction    string       `nri:"1"`
	DefaultErrno     *Opt[uint32] `nri:"2"`
	Architectures    []string     `nri:"3"`
	Flags            []string     `nri:"4"`
	ListenerPath     string       `nri:"5"`
	ListenerMetadata string       `nri:"6"`
	Syscalls         []*Syscall   `nri:"7"`
}

// Syscall is one of a profile's rules.
type Syscall struct {
	Names  []string      `nri:"1"`
	Action string        `nri:"2"`
	Errno  *Opt[uint32]  `nri:"3"`
	Args   []*SyscallArg `nri:"4"`
}

// SyscallArg is a rule's condition.
type SyscallArg struct {
	Index    uint32 `nri:"1"`
	Value    uint64 `nri:"2"`
	ValueTwo uint64 `nri:"3"`
	Op       string `nri:"4"`
}

// MemoryPolicy is an OCI memory policy; the numbers are the kernel's.
type MemoryPolicy struct {
	Mode  int32   `nri:"1"`
	Nodes string  `nri:"2"`
	Flags []int32 `nri:"3"`
}
