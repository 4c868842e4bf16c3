// Package state holds the kubelet's nouns as plain values: what is wanted of a pod (Want), what is known about it
// (Have), and the table of a container's states. Nothing here decides, waits or talks to anybody.
//
// A Want and a Have belong to one pod's actor, which alone writes them; the planner reads them.
package state
