package config

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Socket is the container runtime's unless a configuration names another.
const Socket = "unix:///run/worknode/runtime.sock"

// fill gives every field that nobody set upstream's default. One differs: the runtime's socket is worknode's own.
// Source: KubeletConfiguration v1beta1, the "Default:" of each field.
func fill(c *Configuration) {
	pointer(&c.EnableServer, true)
	value(&c.Address, "0.0.0.0")
	value(&c.Port, 10250)
	pointer(&c.HealthzPort, 10248)
	value(&c.HealthzBindAddress, "127.0.0.1")
	value(&c.TLSMinVersion, "VersionTLS12")
	period(&c.StreamingConnectionIdleTimeout, 4*time.Hour)
	pointer(&c.EnableDebuggingHandlers, true)
	pointer(&c.EnableSystemLogHandler, true)
	pointer(&c.EnableProfilingHandler, true)
	pointer(&c.EnableDebugFlagsHandler, true)

	pointer(&c.Authentication.Anonymous.Enabled, false)
	pointer(&c.Authentication.Webhook.Enabled, true)
	period(&c.Authentication.Webhook.CacheTTL, 2*time.Minute)
	value(&c.Authorization.Mode, "Webhook")
	period(&c.Authorization.Webhook.CacheAuthorizedTTL, 5*time.Minute)
	period(&c.Authorization.Webhook.CacheUnauthorizedTTL, 30*time.Second)

	period(&c.SyncFrequency, time.Minute)
	period(&c.FileCheckFrequency, 20*time.Second)
	period(&c.HTTPCheckFrequency, 20*time.Second)
	if c.NodeStatusReportFrequency.Duration == 0 {
		// Whoever sets how often the status is computed wants it reported as often.
		c.NodeStatusReportFrequency = c.NodeStatusUpdateFrequency
		period(&c.NodeStatusReportFrequency, 5*time.Minute)
	}
	period(&c.NodeStatusUpdateFrequency, 10*time.Second)
	value(&c.NodeLeaseDurationSeconds, 40)
	pointer(&c.NodeStatusMaxImages, 50)
	pointer(&c.RegisterNode, true)
	value(&c.ContentType, "application/vnd.kubernetes.protobuf")
	pointer(&c.KubeAPIQPS, 50)
	value(&c.KubeAPIBurst, 100)
	pointer(&c.EventRecordQPS, 50)
	value(&c.EventBurst, 100)
	value(&c.ConfigMapAndSecretChangeDetectionStrategy, "Watch")
	pointer(&c.EnableControllerAttachDetach, true)

	value(&c.ContainerRuntimeEndpoint, Socket)
	period(&c.RuntimeRequestTimeout, 2*time.Minute)
	pointer(&c.RegistryPullQPS, 5)
	value(&c.RegistryBurst, 10)
	// A user who allows parallel pulls need not also forbid serial ones.
	pointer(&c.SerializeImagePulls, c.MaxParallelImagePulls == nil || *c.MaxParallelImagePulls < 2)
	value(&c.ImagePullCredentialsVerificationPolicy, "NeverVerifyPreloadedImages")
	period(&c.ImageMinimumGCAge, 2*time.Minute)
	pointer(&c.ImageGCHighThresholdPercent, 85)
	pointer(&c.ImageGCLowThresholdPercent, 80)
	value(&c.ContainerLogMaxSize, "10Mi")
	pointer(&c.ContainerLogMaxFiles, 5)
	pointer(&c.ContainerLogMaxWorkers, 1)
	pointer(&c.ContainerLogMonitorInterval, metav1.Duration{Duration: 10 * time.Second})
	value(&c.PodLogsDir, "/var/log/pods")
	pointer(&c.CrashLoopBackOff.MaxContainerRestartPeriod, metav1.Duration{Duration: 300 * time.Second})

	pointer(&c.CgroupsPerQOS, true)
	value(&c.CgroupDriver, "cgroupfs")
	pointer(&c.CPUCFSQuota, true)
	pointer(&c.CPUCFSQuotaPeriod, metav1.Duration{Duration: 100 * time.Millisecond})
	value(&c.CPUManagerPolicy, "none")
	period(&c.CPUManagerReconcilePeriod, 10*time.Second)
	value(&c.MemoryManagerPolicy, "None")
	value(&c.TopologyManagerPolicy, "none")
	value(&c.TopologyManagerScope, "container")
	value(&c.MemoryReservationPolicy, "None")
	if c.EnforceNodeAllocatable == nil {
		c.EnforceNodeAllocatable = []string{"pods"}
	}
	pointer(&c.OOMScoreAdj, -999)
	pointer(&c.FailSwapOn, true)
	pointer(&c.FailCgroupV1, true)
	value(&c.MaxPods, 110)
	if c.PodPidsLimit == nil || *c.PodPidsLimit < 0 {
		none := int64(-1)
		c.PodPidsLimit = &none
	}
	value(&c.MaxOpenFiles, 1000000)
	pointer(&c.SeccompDefault, false)

	evictionDefaults(c)
	period(&c.EvictionPressureTransitionPeriod, 5*time.Minute)
	pointer(&c.LocalStorageCapacityIsolation, true)
	period(&c.VolumeStatsAggPeriod, time.Minute)
	value(&c.VolumePluginDir, "/usr/libexec/kubernetes/kubelet-plugins/volume/exec/")

	value(&c.HairpinMode, "promiscuous-bridge")
	pointer(&c.ResolverConfig, "/etc/resolv.conf")
	pointer(&c.MakeIPTablesUtilChains, true)
	pointer(&c.IPTablesMasqueradeBit, 14)
	pointer(&c.IPTablesDropBit, 15)
	value(&c.Logging.Format, "text")
	if c.Logging.FlushFrequency == nil {
		c.Logging.FlushFrequency = "5s"
	}
}

// hardEviction are upstream's thresholds. Setting any replaces all of them, unless mergeDefaultEvictionSettings is set.
// Source: Kubernetes docs, node-pressure eviction, hard eviction thresholds.
var hardEviction = map[string]string{
	"memory.available": "100Mi", "nodefs.available": "10%", "nodefs.inodesFree": "5%", "imagefs.available": "15%", "imagefs.inodesFree": "5%",
}

func evictionDefaults(c *Configuration) {
	pointer(&c.MergeDefaultEvictionSettings, false)
	if c.EvictionHard == nil {
		c.EvictionHard = map[string]string{}
	} else if !*c.MergeDefaultEvictionSettings {
		return
	}
	for signal, limit := range hardEviction {
		if _, set := c.EvictionHard[signal]; !set {
			c.EvictionHard[signal] = limit
		}
	}
}

func value[T comparable](field *T, or T) {
	var zero T
	if *field == zero {
		*field = or
	}
}

func pointer[T any](field **T, or T) {
	if *field == nil {
		*field = &or
	}
}

func period(field *metav1.Duration, or time.Duration) { value(&field.Duration, or) }
