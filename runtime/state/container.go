package state

import (
	"strconv"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Container is one container from CreateContainer to RemoveContainer.
type Container struct {
	Version int
	ID      string
	Sandbox string
	State   State
	Config  *cri.ContainerConfig

	ImageID    string              // digest of the image's configuration: what status calls image_id and image_ref
	Image      ocispec.ImageConfig // what the container needs of it, also when the image was removed meanwhile
	Layers     []string            // overlay lower directories, topmost first, relative to the image store's base
	Volumes    []Volume            `json:",omitempty"`
	LogPath    string              `json:",omitempty"` // absolute; empty when the request wants no log
	Cgroup     string              // cgroup path
	StopSignal int                 // what StopContainer sends first
	User       User
	Edits      []Edit `json:",omitempty"` // in order

	Created  time.Time
	Started  time.Time `json:",omitzero"`
	Finished time.Time `json:",omitzero"`
	Deadline time.Time `json:",omitzero"`  // a stop is under way and kills at this moment, also after a restart of ours
	Asked    bool      `json:",omitempty"` // and the stop signal was sent

	Pid       int    `json:",omitempty"`
	StartTime uint64 `json:",omitempty"` // with Pid names the process for ever
	ExitCode  int    `json:",omitempty"`
	Reason    string `json:",omitempty"` // Completed, Error, OOMKilled, StartError, Unknown
	Message   string `json:",omitempty"`
}

// Volume is an image that the request mounts, or a part of one.
type Volume struct {
	Destination string
	ImageID     string
	Lower       []string // directories on the host, topmost first; one file when the sub path names one
}

// User is what the process runs as, all of it resolved against the image's own passwd and group files.
type User struct {
	UID, GID uint32
	Groups   []uint32 `json:",omitempty"` // supplementary groups, the primary one excluded unless asked for
	Home     string   `json:",omitempty"`
}

// Meta is the request's metadata, never nil.
func (c *Container) Meta() *cri.ContainerMetadata {
	if m := c.Config.GetMetadata(); m != nil {
		return m
	}
	return &cri.ContainerMetadata{}
}

// Name is the key by which a repeated CreateContainer is recognised.
func (c *Container) Name() string { return ContainerName(c.Sandbox, c.Config) }

// ContainerName builds the key from a request.
func ContainerName(sandbox string, c *cri.ContainerConfig) string {
	return sandbox + "\x00" + c.GetMetadata().GetName() + "\x00" + itoa(c.GetMetadata().GetAttempt())
}

func itoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
