package plan

import (
	"path"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
)

// Seccomp says which profile a container gets; compiling and caching it is another's work.
type Seccomp struct {
	Default bool   // the runtime's own profile, fitted to the container's capabilities
	Path    string // profile file on the node
}

// chooseSeccomp reads the new field and, where it is absent, the older string form. Absent both means unconfined.
// Source: CRI LinuxContainerSecurityContext.seccomp and .seccomp_profile_path. Privileged containers are unconfined.
func chooseSeccomp(sc *cri.LinuxContainerSecurityContext) (Seccomp, error) {
	if sc.GetPrivileged() {
		return Seccomp{}, nil
	}
	if p := sc.GetSeccomp(); p != nil {
		switch p.GetProfileType() {
		case cri.SecurityProfile_RuntimeDefault:
			return Seccomp{Default: true}, nil
		case cri.SecurityProfile_Localhost:
			return localhost(p.GetLocalhostRef())
		}
		return Seccomp{}, nil
	}
	switch old := sc.GetSeccompProfilePath(); { //nolint:staticcheck // deprecated since Kubernetes 1.19, still sent by older clients
	case old == "" || old == "unconfined":
		return Seccomp{}, nil
	case old == "runtime/default" || old == "docker/default":
		return Seccomp{Default: true}, nil
	case strings.HasPrefix(old, "localhost/"):
		return localhost(strings.TrimPrefix(old, "localhost/"))
	default:
		return Seccomp{}, fault.New(fault.Invalid, "seccomp profile %q is not known", old)
	}
}

func localhost(ref string) (Seccomp, error) {
	if !path.IsAbs(ref) {
		return Seccomp{}, fault.New(fault.Invalid, "seccomp profile %q is not an absolute path", ref)
	}
	return Seccomp{Path: ref}, nil
}
