package config

import (
	"reflect"
	"slices"
	"strings"
)

// heeded are the fields that this kubelet acts upon, or whose default is all that it can do. Whoever makes another one
// count adds it here; a test holds the names against the type.
var heeded = strings.Fields(`
	enableServer podLogsDir address port healthzPort healthzBindAddress tlsCertFile tlsPrivateKeyFile tlsCipherSuites tlsCurvePreferences tlsMinVersion
	authentication.x509 enableProfilingHandler
	clusterDomain clusterDNS resolvConf podCIDR maxPods podsPerCore podPidsLimit seccompDefault cpuCFSQuota cpuCFSQuotaPeriod
	cgroupRoot containerRuntimeEndpoint failCgroupV1 failSwapOn enforceNodeAllocatable systemReserved kubeReserved reservedSystemCPUs
	containerLogMaxSize containerLogMaxFiles containerLogMonitorInterval
	nodeStatusUpdateFrequency nodeStatusReportFrequency nodeLeaseDurationSeconds nodeStatusMaxImages registerNode registerWithTaints providerID
	evictionHard mergeDefaultEvictionSettings`)

// Unheeded names the fields that are set to something else than their default and have no effect yet, for one warning at
// the start: a setting that is ignored silently is worse than one that is refused.
func Unheeded(c *Configuration) (names []string) {
	plain := new(Configuration)
	fill(plain)
	walk("", reflect.ValueOf(c).Elem(), reflect.ValueOf(plain).Elem(), func(name string) { names = append(names, name) })
	return names
}

// walk calls tell with each unheeded field that differs. Groups of settings are walked into; other structs are one value.
func walk(prefix string, have, want reflect.Value, tell func(string)) {
	for i := range have.NumField() {
		name, _, _ := strings.Cut(have.Type().Field(i).Tag.Get("json"), ",")
		path := prefix + name
		switch {
		case name == "" || slices.Contains(heeded, path):
		case path == "authentication" || path == "authorization":
			walk(path+".", have.Field(i), want.Field(i), tell)
		case !reflect.DeepEqual(have.Field(i).Interface(), want.Field(i).Interface()):
			tell(path)
		}
	}
}
