package config

import (
	"fmt"
	"maps"
	"slices"
)

// gate is a feature gate of Kubernetes 1.37 that concerns a service proxy.
type gate struct {
	on     bool // by default
	locked bool // it can no longer be changed
	moot   bool // changing it changes nothing here
}

// gates are those that kube-proxy itself looks at. The others of the cluster may be set in the same place, so they are
// accepted; they are named once in the log, as a misspelt gate would be.
var gates = map[string]gate{
	"AllAlpha":                            {moot: true},
	"AllBeta":                             {moot: true},
	"AllowServiceExternalIPs":             {on: true},
	"ComponentFlagz":                      {on: true},
	"ComponentStatusz":                    {on: true},
	"ContextualLogging":                   {on: true, moot: true},
	"KubeProxyIPVS":                       {on: true},
	"KubeProxyNFTablesLocalhostNodePorts": {},
	"LoggingAlphaOptions":                 {},
	"LoggingBetaOptions":                  {on: true, moot: true},
	"MultiCIDRServiceAllocator":           {on: true, locked: true},
	"NFTablesNetlink":                     {on: true, moot: true}, // there is no other way here
	"NFTablesProxyMode":                   {on: true, locked: true},
	"PreferSameTrafficDistribution":       {on: true, locked: true},
}

// Gate tells whether a feature is on.
func (c *Configuration) Gate(name string) bool {
	if set, ok := c.FeatureGates[name]; ok {
		return set
	}
	return gates[name].on
}

// gateSet tells whether somebody asked for a feature, rather than left it alone.
func (c *Configuration) gateSet(name string) (on, set bool) {
	on, set = c.FeatureGates[name]
	return on, set
}

// checkGates returns what is wrong with gates, and those that have no effect here.
func (c *Configuration) checkGates() (wrong map[string]string, moot []string) {
	wrong = map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(c.FeatureGates)) {
		set := c.FeatureGates[name]
		g, known := gates[name]
		switch {
		case known && g.locked && set != g.on:
			wrong[name] = fmt.Sprintf("%v: this feature is locked to %v (remove it)", set, g.on)
		case !known, g.moot && set != g.on:
			moot = append(moot, "featureGates."+name)
		}
	}
	return wrong, moot
}
