package runtime

import (
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/runtime/cdi"
	"worknode/runtime/plan"
	"worknode/runtime/state"
)

// askedDevices adds to a container's record what the CDI devices of its request change.
// Source: CRI ContainerConfig.CDI_devices; annotations cdi.k8s.io/*, which older device plugins use.
func (l *loop) askedDevices(c *state.Container) error {
	var field []string
	for _, d := range c.Config.GetCDIDevices() {
		field = append(field, d.GetName())
	}
	names, err := cdi.Asked(field, c.Config.GetAnnotations())
	if err != nil {
		return containerError(c.Config, err)
	}
	return l.addDevices(c, names)
}

func (l *loop) addDevices(c *state.Container, names []string) error {
	if len(names) == 0 {
		return nil
	}
	mapped, err := plan.UserNamespace(c.Config.GetLinux().GetSecurityContext().GetNamespaceOptions())
	if err != nil {
		return err
	}
	add, err := cdi.Edits(l.opt.CDIDirs, names, plan.User(c.User), mapped != nil)
	if err != nil {
		return containerError(c.Config, err)
	}
	c.Edits = append(c.Edits, state.Edit{Add: add})
	return nil
}

func containerError(c *cri.ContainerConfig, err error) error {
	return fmt.Errorf("container %s: %w", c.GetMetadata().GetName(), err)
}
