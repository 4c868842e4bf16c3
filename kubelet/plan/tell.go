package plan

// praise returns the events about an action that succeeded. The executor itself tells of pulls, as only it knows whether
// there was one.
func praise(a Action, r Result) []Say {
	if a, ok := a.(StartContainer); ok {
		started := Say{Container: a.Container, Reason: "Started", Message: "Container started"}
		if a.ID != "" {
			return []Say{started}
		}
		return []Say{{Container: a.Container, Reason: "Created", Message: "Container created"}, started}
	}
	return nil
}

// blame returns the events about an action that failed, with the reasons and words that tools know.
func blame(a Action, r Result) []Say {
	warn := func(container, reason, message string) []Say {
		return []Say{{Container: container, Warning: true, Reason: reason, Message: message}}
	}
	m := r.Failed.Message
	if r.Lost {
		return nil // we look first
	}
	switch a := a.(type) {
	case RunSandbox:
		return warn("", "FailedCreatePodSandBox", "Failed to create pod sandbox: "+m)
	case MountVolumes, RefreshVolumes:
		return warn("", "FailedMount", m)
	case EnsureImage:
		switch r.Failed.Reason {
		case "ErrImageNeverPull", "InvalidImageName", "InspectFailed":
			return append(warn(a.Container, r.Failed.Reason, m), warn(a.Container, "Failed", "Error: "+r.Failed.Reason)...)
		}
		return append(warn(a.Container, "Failed", m), warn(a.Container, "Failed", "Error: "+r.Failed.Reason)...)
	case StartContainer:
		return warn(a.Container, "Failed", "Error: "+m)
	case RunHook:
		if a.Hook == PostStart {
			return warn(a.Container, "FailedPostStartHook", "PostStartHook failed: "+m)
		}
		return warn(a.Container, "FailedPreStopHook", "PreStopHook failed: "+m)
	case StopContainer:
		return warn(a.Container, "FailedKillPod", "error killing pod: "+m)
	case StopSandbox:
		return warn("", "FailedKillPod", "error killing pod: "+m)
	}
	return nil
}
