package runtime

import (
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/runtime/image"
	"worknode/runtime/state"
)

// Images, Image and RemoveImage pass on to the store.
func (l *loop) Images() []image.Image { return l.images.List() }

// Image finds an image by any of its names.
func (l *loop) Image(ref string) (image.Image, bool) { return l.images.Get(ref) }

// RemoveImage drops an image with all its tags; containers that use it keep its layers.
func (l *loop) RemoveImage(ref string) error { return l.images.Remove(ref) }

// ImageUsage is what image layers and writable layers take.
func (l *loop) ImageUsage() (layers, containers *cri.FilesystemUsage) {
	now := time.Now().UnixNano()
	used, inodes := l.images.Usage()
	layers = usage(now, l.images.Base(), used, inodes)
	containers = usage(now, l.opt.Root, 0, 0)
	for _, c := range l.store.Containers("") {
		bytes, files := l.written(c)
		containers.UsedBytes.Value += bytes
		containers.InodesUsed.Value += files
	}
	return layers, containers
}

func usage(at int64, place string, bytes, inodes uint64) *cri.FilesystemUsage {
	return &cri.FilesystemUsage{Timestamp: at, FsId: &cri.FilesystemIdentifier{Mountpoint: place},
		UsedBytes: &cri.UInt64Value{Value: bytes}, InodesUsed: &cri.UInt64Value{Value: inodes}}
}

// Store, Events, Ready and SetPodCIDR complete what the api asks of a node.
func (l *loop) Store() *state.Store { return l.store }

// Events subscribes to container events; see hub.
func (l *loop) Events() (<-chan *cri.ContainerEventResponse, func()) { return l.events.join() }

// Ready reports what keeps containers, and pods with a network of their own, from being started.
func (l *loop) Ready() (runtime, network error) {
	if !l.keeper.Up() {
		runtime = fault.New(fault.Temporary, "worknode-monitor does not answer, a new one is being started")
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(l.opt.Root, &fs); err != nil {
		runtime = fault.New(fault.Temporary, "root folder %s: %w", l.opt.Root, err)
	}
	return runtime, l.net.ready()
}

// UserNamespaces reports whether pods can have user namespaces here.
func (l *loop) UserNamespaces() bool { return l.hands.Host.UserNS }

// SetPodCIDR hears what subnets the cluster gave this node, separated by commas; plugins are told, while the built-in
// bridge has its own, set at start.
func (l *loop) SetPodCIDR(cidr string) { l.net.setPodCIDR(cidr) }
