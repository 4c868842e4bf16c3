// Package kubelet runs pods on this node: pods come from the API server, calls to the container runtime, volumes,
// cgroups and statuses go out. It keeps no state that matters: after a kill -9 it looks at the node and goes on, and no
// container notices.
//
// Every pod has an actor (loop.go) that sleeps until something happens to it, asks the planner what to do, starts that,
// and reports the status. Read first:
//
//	plan/plan.go    what is to be done about one pod: the heart, and pure
//	plan/run.go     a pod that is to live; plan/stop.go one that is to end
//	loop.go         the actor: letters, plan, actions
//	room.go         all actors: routing of news, admission, pods found at start
//	act/doc.go      actions carried out; act/look.go the node looked at
package kubelet
