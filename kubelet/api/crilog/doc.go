// Package crilog reads container log files in the format that CRI runtimes write, and follows them through rotation.
// It does not write or rotate them. A record is one line:
//
//	2026-01-02T03:04:05.678901234Z stdout F text
//
// where P instead of F says that the text goes on in the stream's next record.
// Source: Kubernetes design, kubelet-cri-logging; api.proto, ContainerConfig.log_path.
package crilog

import "time"

// Options selects what is read. The zero value selects nothing; All is where to begin.
type Options struct {
	Follow         bool
	Tail           int64     // this many last lines; negative: all
	Since          time.Time // skip lines before this; zero: none
	Limit          int64     // stop after this many bytes of output; negative: no limit
	Timestamps     bool      // begin each line with its time
	Stdout, Stderr bool
}

// All reads everything that is in the file now.
func All() Options { return Options{Tail: -1, Limit: -1, Stdout: true, Stderr: true} }
