package config

import (
	"reflect"
	"slices"
	"strings"
)

// heeded are the fields that this kubelet acts upon, or whose default is all that it can do. Whoever makes another one
// count adds it here; a test holds the names against the type.
var heeded = strings.Fields(`
	staticPodPath staticPodURL staticPodURLHeader fileCheckFrequency httpCheckFrequency
	enableServer podLogsDir address port healthzPort healthzBindAddress tlsCertFile tlsPrivateKeyFile tlsCipherSuites tlsCurvePreferences tlsMinVersion
	rotateCertificates serverTLSBootstrap authentication authorization enableProfilingHandler enableDebuggingHandlers enableSystemLogHandler
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
	have, want := reflect.ValueOf(c).Elem(), reflect.ValueOf(plain).Elem()
	for i := range have.NumField() {
		name, _, _ := strings.Cut(have.Type().Field(i).Tag.Get("json"), ",")
		if name != "" && !slices.Contains(heeded, name) && !reflect.DeepEqual(have.Field(i).Interface(), want.Field(i).Interface()) {
			names = append(names, name)
		}
	}
	return names
}
