// Package runtime is "worknode runtime": CRI v1 in, containers out. It makes pod sandboxes out of pinned namespaces
// (no pause process), plans each container as an OCI spec, and has worknode-monitor clone it. It holds no container's
// life: kill it at any instant, and the next start finds everything in the monitor, on tmpfs and in the kernel.
//
// Read first: loop.go (where requests and exits meet the records), plan/plan.go (request to spec), act/start.go (spec to
// what the monitor takes), act/keeper.go (the bond with the monitor), recover.go (what a start finds and mends).
package runtime
