// Package status brings pod statuses to the API server: at once, one request in flight per pod, the newest state wins.
// It decides nothing about them; what it knows is which news cannot wait: readiness, and the end of a pod.
package status
