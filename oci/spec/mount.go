package spec

import (
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"worknode/fault"
	"worknode/monitor/wire"
)

// option is what one word of a mount's options means.
type option struct {
	set, clear       uintptr // MS_*
	propagation      uintptr
	recSet, recClear uint64 // MOUNT_ATTR_*
	idmap, rec       bool
	copyUp           bool
}

// options are the words known, for `features`; a test holds them to meaning.
const options = "acl async atime bind defaults dev diratime dirsync exec idmap iversion lazytime loud mand noacl noatime nodev " +
	"nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private ratime rbind rdev rdiratime " +
	"relatime rexec ridmap rnoatime rnodev rnodiratime rnoexec rnorelatime rnostrictatime rnosuid rnosymfollow ro rprivate rrelatime " +
	"rro rrw rshared rslave rstrictatime rsuid rsymfollow runbindable rw shared silent slave strictatime suid symfollow sync " +
	"tmpcopyup unbindable"

// MountOptions lists the option words with a meaning of their own; others go to the filesystem.
func MountOptions() []string { return strings.Fields(options) }

// meaning is that of a word, if it is not one for the filesystem. A function and not a map: a map is built at every
// start of an init, which is this same binary.
// Source: OCI runtime spec, config.md, "Linux mount options".
func meaning(word string) (option, bool) {
	switch word {
	case "defaults", "loud":
		return option{}, true
	case "bind":
		return option{set: unix.MS_BIND}, true
	case "rbind":
		return option{set: unix.MS_BIND | unix.MS_REC}, true
	case "idmap":
		return option{idmap: true}, true
	case "ridmap":
		return option{idmap: true, rec: true}, true
	case "tmpcopyup":
		return option{copyUp: true}, true
	case "dirsync":
		return option{set: unix.MS_DIRSYNC}, true
	case "silent":
		return option{set: unix.MS_SILENT}, true
	}
	if p := propagation(word); p != 0 {
		return option{propagation: p}, true
	}
	if set, clear := flag(word); set|clear != 0 {
		return option{set: set, clear: clear}, true
	}
	if rest, ok := strings.CutPrefix(word, "r"); ok {
		if set, clear := recursive(rest); set|clear != 0 {
			return option{recSet: set, recClear: clear}, true
		}
	}
	return option{}, false
}

func propagation(word string) uintptr {
	rest, rec := strings.CutPrefix(word, "r")
	var p uintptr
	switch rest {
	case "private":
		p = unix.MS_PRIVATE
	case "slave":
		p = unix.MS_SLAVE
	case "shared":
		p = unix.MS_SHARED
	case "unbindable":
		p = unix.MS_UNBINDABLE
	default:
		return 0
	}
	if rec {
		p |= unix.MS_REC
	}
	return p
}

func flag(word string) (set, clear uintptr) {
	switch word {
	case "ro":
		return unix.MS_RDONLY, 0
	case "rw":
		return 0, unix.MS_RDONLY
	case "nosuid":
		return unix.MS_NOSUID, 0
	case "suid":
		return 0, unix.MS_NOSUID
	case "nodev":
		return unix.MS_NODEV, 0
	case "dev":
		return 0, unix.MS_NODEV
	case "noexec":
		return unix.MS_NOEXEC, 0
	case "exec":
		return 0, unix.MS_NOEXEC
	case "sync":
		return unix.MS_SYNCHRONOUS, 0
	case "async":
		return 0, unix.MS_SYNCHRONOUS
	case "mand":
		return unix.MS_MANDLOCK, 0
	case "nomand":
		return 0, unix.MS_MANDLOCK
	case "noatime":
		return unix.MS_NOATIME, 0
	case "atime":
		return 0, unix.MS_NOATIME
	case "nodiratime":
		return unix.MS_NODIRATIME, 0
	case "diratime":
		return 0, unix.MS_NODIRATIME
	case "relatime":
		return unix.MS_RELATIME, 0
	case "norelatime":
		return 0, unix.MS_RELATIME
	case "strictatime":
		return unix.MS_STRICTATIME, 0
	case "nostrictatime":
		return 0, unix.MS_STRICTATIME
	case "iversion":
		return unix.MS_I_VERSION, 0
	case "noiversion":
		return 0, unix.MS_I_VERSION
	case "lazytime":
		return unix.MS_LAZYTIME, 0
	case "nolazytime":
		return 0, unix.MS_LAZYTIME
	case "acl":
		return unix.MS_POSIXACL, 0
	case "noacl":
		return 0, unix.MS_POSIXACL
	case "nosymfollow":
		return unix.MS_NOSYMFOLLOW, 0
	case "symfollow":
		return 0, unix.MS_NOSYMFOLLOW
	}
	return 0, 0
}

// recursive is the meaning of r+word for the whole tree. Times are one field of three values, cleared as a whole.
func recursive(word string) (set, clear uint64) {
	switch word {
	case "ro":
		return unix.MOUNT_ATTR_RDONLY, 0
	case "rw":
		return 0, unix.MOUNT_ATTR_RDONLY
	case "nosuid":
		return unix.MOUNT_ATTR_NOSUID, 0
	case "suid":
		return 0, unix.MOUNT_ATTR_NOSUID
	case "nodev":
		return unix.MOUNT_ATTR_NODEV, 0
	case "dev":
		return 0, unix.MOUNT_ATTR_NODEV
	case "noexec":
		return unix.MOUNT_ATTR_NOEXEC, 0
	case "exec":
		return 0, unix.MOUNT_ATTR_NOEXEC
	case "nodiratime":
		return unix.MOUNT_ATTR_NODIRATIME, 0
	case "diratime":
		return 0, unix.MOUNT_ATTR_NODIRATIME
	case "nosymfollow":
		return unix.MOUNT_ATTR_NOSYMFOLLOW, 0
	case "symfollow":
		return 0, unix.MOUNT_ATTR_NOSYMFOLLOW
	case "noatime":
		return unix.MOUNT_ATTR_NOATIME, unix.MOUNT_ATTR__ATIME
	case "strictatime":
		return unix.MOUNT_ATTR_STRICTATIME, unix.MOUNT_ATTR__ATIME
	case "relatime", "atime", "nostrictatime":
		return 0, unix.MOUNT_ATTR__ATIME // relatime is the value 0
	case "norelatime":
		return unix.MOUNT_ATTR_STRICTATIME, unix.MOUNT_ATTR__ATIME
	}
	return 0, 0
}

// Mount splits one mount's options. Own id mappings are left to the caller, which has to make a user namespace of them:
// see Made.Maps.
// Errors: Invalid, Unsupported, naming the destination.
func Mount(m specs.Mount) (wire.Mount, error) {
	out := wire.Mount{Source: m.Source, Destination: m.Destination, Type: m.Type}
	if !path.IsAbs(path.Clean(m.Destination)) {
		out.Destination = "/" + m.Destination // Source: config.md, "mounts": relative ones were deprecated, not forbidden
	}
	var data []string
	for _, word := range m.Options {
		if word == "remount" {
			return out, fault.New(fault.Unsupported, "mount %s: remount changes a mount that is there already; name its options where it is made", m.Destination)
		}
		o, known := meaning(word)
		if !known {
			data = append(data, word)
			continue
		}
		out.Flags = out.Flags&^o.clear | o.set
		out.Clear = out.Clear&^o.set | o.clear
		out.RecClear = out.RecClear&^o.recSet | o.recClear
		out.RecSet = out.RecSet&^o.recClear | o.recSet
		out.IDMap = out.IDMap || o.idmap
		out.IDMapRec = out.IDMapRec || o.rec
		out.CopyUp = out.CopyUp || o.copyUp
		if o.propagation != 0 {
			out.Propagation = append(out.Propagation, o.propagation)
		}
	}
	if m.Type == "bind" && out.Flags&unix.MS_BIND == 0 {
		out.Flags |= unix.MS_BIND
	}
	out.Data = strings.Join(data, ",")
	if out.Flags&unix.MS_BIND == 0 {
		if out.IDMap || len(m.UIDMappings)+len(m.GIDMappings) > 0 {
			return out, fault.New(fault.Unsupported, "mount %s: owners can be mapped for bind mounts alone", m.Destination)
		}
		return out, nil
	}
	out.Type = "bind"
	out.Data = "" // the kernel has no use for a filesystem's options here, and the validation suite gives some
	if out.CopyUp {
		return out, fault.New(fault.Invalid, "mount %s: tmpcopyup is for a tmpfs", m.Destination)
	}
	return out, nil
}
