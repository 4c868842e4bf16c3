// Package version names this build and the Kubernetes level that it speaks.
package version

// Build is the source revision, set by the linker.
var Build = "dev"

// Kubernetes is the version whose interfaces worknode implements; kubectl and the API server compare it with theirs.
const Kubernetes = "v1.37.2"
