package state

import (
	"encoding/json"

	"google.golang.org/protobuf/encoding/protojson"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CRI messages are written in protobuf's own JSON: the plain encoder would turn environment values, which may be any
// bytes, into text and lose some.

// MarshalJSON writes the record.
func (s *Sandbox) MarshalJSON() ([]byte, error) {
	type plain Sandbox
	config, err := protojson.Marshal(s.Config)
	if err != nil {
		return nil, err
	}
	return json.Marshal(struct {
		*plain
		Config json.RawMessage
	}{(*plain)(s), config})
}

// UnmarshalJSON reads a record of this version or an older one; fields of a newer CRI are left out.
func (s *Sandbox) UnmarshalJSON(data []byte) error {
	type plain Sandbox
	var r struct {
		*plain
		Config json.RawMessage
	}
	r.plain = (*plain)(s)
	if err := json.Unmarshal(data, &r); err != nil || len(r.Config) == 0 {
		return err
	}
	s.Config = &cri.PodSandboxConfig{}
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(r.Config, s.Config)
}

// MarshalJSON writes the record.
func (c *Container) MarshalJSON() ([]byte, error) {
	type plain Container
	config, err := protojson.Marshal(c.Config)
	if err != nil {
		return nil, err
	}
	return json.Marshal(struct {
		*plain
		Config json.RawMessage
	}{(*plain)(c), config})
}

// UnmarshalJSON is like Sandbox's.
func (c *Container) UnmarshalJSON(data []byte) error {
	type plain Container
	var r struct {
		*plain
		Config json.RawMessage
	}
	r.plain = (*plain)(c)
	if err := json.Unmarshal(data, &r); err != nil || len(r.Config) == 0 {
		return err
	}
	c.Config = &cri.ContainerConfig{}
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(r.Config, c.Config)
}
