package oci

// exception excuses test points of a validation program, by parts of what they say.
type exception struct {
	points []string
	why    string
	maybe  bool // it depends on the machine or on time, so passing is no news
	retry  bool // it is a race in the program: twice lost is a failure
}

// exceptions are argued from the spec, version 1.3 (the suite is written for 1.1 and older), or from the program itself.
var exceptions = map[string]exception{
	"hooks": {points: []string{"MUST be called in the listed order"},
		why: "the program reads what its hooks wrote after it has removed the bundle; monitor's own tests check the order"},
	"killsig": {retry: true, maybe: true, why: "the signal may come before the program's shell has set its trap"},
	"linux_cgroups_blkio": {points: []string{"no such device"}, maybe: true,
		why: "it limits devices 8:0 and 8:16, and the kernel refuses those that are not there"},
	"linux_cgroups_relative_blkio": {points: []string{"exit status 1"}, maybe: true, why: "as linux_cgroups_blkio"},
	"linux_cgroups_hugetlb":        {points: []string{"hugetlb controller is not mounted"}, maybe: true, why: "this machine has no such hierarchy, and refusing is what is left"},
	"linux_cgroups_relative_hugetlb": {points: []string{"exit status 1", "hugetlb"}, maybe: true,
		why: "as linux_cgroups_hugetlb"},
	"linux_cgroups_network":          {points: []string{"net_cls controller is not mounted"}, maybe: true, why: "this machine has no such hierarchy"},
	"linux_cgroups_relative_network": {points: []string{"exit status 1"}, maybe: true, why: "as linux_cgroups_network"},
	"linux_cgroups_memory": {points: []string{"memory kernel is set correctly"},
		why: "config-linux.md, memory.kernel: deprecated, may be ignored; kernels since 5.16 do not have it"},
	"linux_cgroups_relative_memory": {points: []string{"memory kernel is set correctly"}, why: "as linux_cgroups_memory"},
	"linux_mount_label":             {points: []string{"SELinux is not enabled"}, maybe: true, why: "a label without SELinux cannot be applied, so it is refused (runtime.md, errors)"},
	"linux_process_apparmor_profile": {points: []string{"AppArmor label"}, maybe: true,
		why: "a profile without AppArmor cannot be applied, so it is refused"},
	"misc_props": {points: []string{"unknown annotation key"}, why: "the program it wants to run, /runtimetest, is not put into its bundle"},
	"mounts": {points: []string{"found in order"},
		why: "mounts are made in order; since kernel 6.8 mountinfo lists them by the ids they got as detached trees, and binds are taken before any is mounted"},
	"pidfile": {points: []string{"--pid-file"}, maybe: true,
		why: "it kills a program, true, that may have ended: runtime.md, kill, demands an error then"},
	"poststart": {points: []string{"after the user-specified process is executed"}, maybe: true,
		why: "the hook comes after execve, as demanded; which of two programs then writes first is a race"},
	"poststart_fail": {points: []string{"MUST log a warning"}, why: "since 1.1 runtime.md, lifecycle step 9, demands an error and the container's end"},
	"prestart": {points: []string{"after the `start` operation is called"},
		why: "since 1.0.2 config.md, prestart, has them called by create"},
	"process_capabilities": {points: []string{"CAP_SYS_RESOURCE"}, maybe: true,
		why: "config.md, capabilities: what cannot be granted is a warning, and a test's machine may lack it"},
	"process_capabilities_fail": {points: []string{"MUST cause an error"}, why: "since 1.1 config.md, capabilities, demands a warning"},
	"process_rlimits":           {points: []string{"has expected soft RLIMIT_NOFILE", "RLIMIT_NOFILE"}, maybe: true, why: "runtimetest is a Go program, and Go raises this limit at its start"},
	"start": {points: []string{"MUST generate an error if `process` was not set"},
		why: "the program has it the wrong way round: it fails when there is an error"},
}
