package cni

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"worknode/fault"
)

// maxConf bounds a configuration file, in bytes.
const maxConf = 1 << 20

// config is a network configuration and where it stands.
type config struct {
	file string
	list *libcni.NetworkConfigList
}

// has tells whether a plugin of the list takes what the runtime has under this name.
func (c *config) has(capability string) bool {
	return slices.ContainsFunc(c.list.Plugins, func(p *libcni.PluginConfig) bool { return p.Network.Capabilities[capability] })
}

// load reads the first configuration of a folder, by name.
// Errors: NotFound if there is none; Invalid names the file. A bad first file hides the others: which network a pod gets
// must not depend on a typing error.
func load(dir string) (*config, error) {
	entries, err := os.ReadDir(dir) // sorted
	if err != nil && !os.IsNotExist(err) {
		return nil, fault.New(fault.Denied, "network configurations: %w", err)
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); e.IsDir() || ext != ".conflist" && ext != ".conf" && ext != ".json" {
			continue
		}
		file := filepath.Join(dir, e.Name())
		list, err := readConf(file)
		if err != nil {
			err = fault.New(fault.Invalid, "network configuration %s: %w", file, err)
			return nil, fault.Hint(err, "correct the file or remove it; it is read again when it changes")
		}
		return &config{file, list}, nil
	}
	err = fault.New(fault.NotFound, "no network configuration in %s", dir)
	return nil, fault.Hint(err, "install a CNI network add-on, or start the runtime with --bridge; pods with hostNetwork run without")
}

func readConf(file string) (*libcni.NetworkConfigList, error) {
	st, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if st.Size() > maxConf {
		return nil, fmt.Errorf("it has %d bytes, more than %d", st.Size(), maxConf)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	list, err := parse(data)
	if err != nil {
		return nil, err
	}
	if !list.LoadOnlyInlinedPlugins { // spec 1.1: plugins may lie in files of their own, in a folder of the network's name
		more, err := libcni.NetworkPluginConfsFromFiles(filepath.Dir(file), list.Name)
		if err != nil {
			return nil, err
		}
		list.Plugins = append(list.Plugins, more...)
	}
	if len(list.Plugins) == 0 {
		return nil, fmt.Errorf("it names no plugin")
	}
	return list, nil
}

// listOf is the list with one as its only plugin.
func listOf(one *libcni.PluginConfig) (*libcni.NetworkConfigList, error) {
	data, err := json.Marshal(map[string]any{
		"name": one.Network.Name, "cniVersion": one.Network.CNIVersion, "plugins": []json.RawMessage{one.Bytes},
	})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(data)
}

// parse understands both kinds of configuration: a list of plugins, and the older one of a single plugin.
func parse(data []byte) (*libcni.NetworkConfigList, error) {
	var probe struct {
		Name    string
		Type    string
		Plugins []json.RawMessage
	}
	if err := json.Unmarshal(data, &probe); err != nil {
		return nil, err
	}
	var list *libcni.NetworkConfigList
	var err error
	if probe.Type != "" && probe.Plugins == nil {
		var one *libcni.PluginConfig
		if one, err = libcni.NetworkPluginConfFromBytes(data); err == nil {
			list, err = listOf(one)
		}
	} else {
		list, err = libcni.NetworkConfFromBytes(data)
	}
	if err != nil {
		return nil, err
	}
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return nil, fmt.Errorf("name: %w", err)
	}
	if v := list.CNIVersion; v != "" && !slices.Contains(version.All.SupportedVersions(), v) {
		return nil, fmt.Errorf("cniVersion %q is none of %v", v, version.All.SupportedVersions())
	}
	return list, nil
}
