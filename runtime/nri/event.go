package nri

// event is what plugins subscribe to; bit n-1 of a subscription is event n.
type event int32

const (
	runPod event = iota + 1
	stopPod
	removePod
	createContainer
	postCreateContainer
	startContainer
	postStartContainer
	updateContainer
	postUpdateContainer
	stopContainer
	removeContainer
	updatePod
	postUpdatePod
	validate
	lastEvent
)

const allEvents = 1<<(lastEvent-1) - 1

// methods are the calls for the events. plain ones have an older form, StateChange, which plugins may know instead.
var methods = [lastEvent]struct {
	name  string
	plain bool
}{
	runPod: {"RunPodSandbox", true}, stopPod: {"StopPodSandbox", true}, removePod: {"RemovePodSandbox", true},
	updatePod: {"UpdatePodSandbox", false}, postUpdatePod: {"PostUpdatePodSandbox", true},
	createContainer: {"CreateContainer", false}, postCreateContainer: {"PostCreateContainer", true},
	startContainer: {"StartContainer", true}, postStartContainer: {"PostStartContainer", true},
	updateContainer: {"UpdateContainer", false}, postUpdateContainer: {"PostUpdateContainer", true},
	stopContainer: {"StopContainer", false}, removeContainer: {"RemoveContainer", true},
	validate: {"ValidateContainerAdjustment", false},
}
