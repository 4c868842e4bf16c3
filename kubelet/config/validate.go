package config

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"worknode/kernel/cpulist"
)

// complaints collects what is wrong, so that a user mends all of it at once.
type complaints []error

func (all *complaints) add(field, format string, args ...any) {
	*all = append(*all, fmt.Errorf(field+": "+format, args...))
}

func (all *complaints) unless(ok bool, field, format string, args ...any) {
	if !ok {
		all.add(field, format, args...)
	}
}

// between holds a number to a range, both ends included.
func between[N ~int32 | ~int64 | ~int](all *complaints, field string, n, low, high N) {
	all.unless(n >= low && n <= high, field, "%d is not between %d and %d", n, low, high)
}

// oneOf holds a word to a list.
func oneOf[S ~string](all *complaints, field string, word S, allowed ...S) {
	all.unless(slices.Contains(allowed, word), field, "%q is none of %q", word, allowed)
}

// validate refuses what upstream's kubelet refuses in a configuration that was filled in.
// Source: KubeletConfiguration v1beta1, the documentation of each field; Kubernetes 1.37.
func validate(c *Configuration) error {
	var all complaints
	numbers(&all, c)
	words(&all, c)
	images(&all, c)
	shutdown(&all, c)
	enforcement(&all, c)
	eviction(&all, c)
	memoryOf(&all, c)
	for i, t := range c.RegisterWithTaints {
		taint(&all, "registerWithTaints["+strconv.Itoa(i)+"]", t)
	}
	for _, field := range []struct {
		name string
		m    map[string]string
	}{{"systemReserved", c.SystemReserved}, {"kubeReserved", c.KubeReserved}} {
		for _, name := range keys(field.m) {
			oneOf(&all, field.name, name, "cpu", "memory", "ephemeral-storage", "pid")
			q, err := resource.ParseQuantity(field.m[name])
			all.unless(err == nil && q.Sign() >= 0, field.name+"."+name, "%q is not a quantity of zero or more", field.m[name])
		}
	}
	return errors.Join(all...)
}

func numbers(all *complaints, c *Configuration) {
	between(all, "port", c.Port, 1, 65535)
	between(all, "readOnlyPort", c.ReadOnlyPort, 0, 65535)
	between(all, "healthzPort", *c.HealthzPort, 0, 65535)
	between(all, "nodeLeaseDurationSeconds", c.NodeLeaseDurationSeconds, 1, 1<<30)
	between(all, "imageGCHighThresholdPercent", *c.ImageGCHighThresholdPercent, 0, 100)
	between(all, "imageGCLowThresholdPercent", *c.ImageGCLowThresholdPercent, 0, 100)
	all.unless(*c.ImageGCLowThresholdPercent < *c.ImageGCHighThresholdPercent, "imageGCLowThresholdPercent", "%d is not below imageGCHighThresholdPercent, %d",
		*c.ImageGCLowThresholdPercent, *c.ImageGCHighThresholdPercent)
	between(all, "iptablesMasqueradeBit", *c.IPTablesMasqueradeBit, 0, 31)
	between(all, "iptablesDropBit", *c.IPTablesDropBit, 0, 31)
	between(all, "oomScoreAdj", *c.OOMScoreAdj, -1000, 1000)
	for _, f := range []struct {
		name string
		n    int64
		low  int64
	}{
		{"eventBurst", int64(c.EventBurst), 0}, {"eventRecordQPS", int64(*c.EventRecordQPS), 0}, {"kubeAPIBurst", int64(c.KubeAPIBurst), 0}, {"kubeAPIQPS", int64(*c.KubeAPIQPS), 0},
		{"registryBurst", int64(c.RegistryBurst), 0}, {"registryPullQPS", int64(*c.RegistryPullQPS), 0}, {"maxOpenFiles", c.MaxOpenFiles, 0}, {"maxPods", int64(c.MaxPods), 0},
		{"podsPerCore", int64(c.PodsPerCore), 0}, {"nodeStatusMaxImages", int64(*c.NodeStatusMaxImages), -1}, {"containerLogMaxFiles", int64(*c.ContainerLogMaxFiles), 2},
		{"containerLogMaxWorkers", int64(*c.ContainerLogMaxWorkers), 1}, {"imageMinimumGCAge", int64(c.ImageMinimumGCAge.Duration), 0}, {"imageMaximumGCAge", int64(c.ImageMaximumGCAge.Duration), 0},
	} {
		all.unless(f.n >= f.low, f.name, "%d is less than %d", f.n, f.low)
	}
	quota := c.CPUCFSQuotaPeriod.Duration
	all.unless(quota >= time.Millisecond && quota <= time.Second, "cpuCFSQuotaPeriod", "%v is not between 1ms and 1s", quota)
	all.unless(c.ContainerLogMonitorInterval.Duration >= 3*time.Second, "containerLogMonitorInterval", "%v is less than 3s", c.ContainerLogMonitorInterval.Duration)
	restart := c.CrashLoopBackOff.MaxContainerRestartPeriod.Duration
	all.unless(restart >= time.Second && restart <= 300*time.Second, "crashLoopBackOff.maxContainerRestartPeriod", "%v is not between 1s and 300s", restart)
	if f := c.MemoryThrottlingFactor; f != nil {
		all.unless(*f > 0 && *f <= 1, "memoryThrottlingFactor", "%v is not above 0 and at most 1", *f)
	}
	if u := c.UserNamespaces; u != nil && u.IDsPerPod != nil {
		const block = 65536
		all.unless(*u.IDsPerPod >= block && *u.IDsPerPod%block == 0 && *u.IDsPerPod <= 1<<32-1, "userNamespaces.idsPerPod", "%d is not a multiple of %d below 2^32", *u.IDsPerPod, block)
	}
	if q, err := resource.ParseQuantity(c.ContainerLogMaxSize); err != nil || q.Sign() <= 0 {
		all.add("containerLogMaxSize", "%q is not a size such as 10Mi", c.ContainerLogMaxSize)
	}
}

func words(all *complaints, c *Configuration) {
	oneOf(all, "authorization.mode", c.Authorization.Mode, "AlwaysAllow", "Webhook")
	oneOf(all, "cgroupDriver", c.CgroupDriver, "cgroupfs", "systemd")
	oneOf(all, "cpuManagerPolicy", c.CPUManagerPolicy, "none", "static")
	oneOf(all, "memoryManagerPolicy", c.MemoryManagerPolicy, "None", "Static")
	oneOf(all, "topologyManagerPolicy", c.TopologyManagerPolicy, "none", "best-effort",
		"restricted", "single-numa-node")
	oneOf(all, "topologyManagerScope", c.TopologyManagerScope, "container", "pod")
	oneOf(all, "hairpinMode", c.HairpinMode, "none", "hairpin-veth", "promiscuous-bridge")
	oneOf(all, "memorySwap.swapBehavior", c.MemorySwap.SwapBehavior, "", "NoSwap", "LimitedSwap")
	oneOf(all, "memoryReservationPolicy", c.MemoryReservationPolicy, "None", "TieredReservation")
	oneOf(all, "configMapAndSecretChangeDetectionStrategy", c.ConfigMapAndSecretChangeDetectionStrategy,
		"Watch", "Cache", "Get")
	oneOf(all, "tlsMinVersion", c.TLSMinVersion, "VersionTLS10", "VersionTLS11", "VersionTLS12", "VersionTLS13")
	oneOf(all, "logging.format", c.Logging.Format, "text", "json")
	for _, f := range []struct{ name, address string }{{"address", c.Address}, {"healthzBindAddress", c.HealthzBindAddress}} {
		_, err := netip.ParseAddr(f.address)
		all.unless(err == nil, f.name, "%q is not an IP address", f.address)
	}
	for i, server := range c.ClusterDNS {
		_, err := netip.ParseAddr(server)
		all.unless(err == nil, fmt.Sprintf("clusterDNS[%d]", i), "%q is not an IP address", server)
	}
	for _, suite := range c.TLSCipherSuites {
		_, known := cipherSuites()[suite]
		all.unless(known, "tlsCipherSuites", "%q is none of %q", suite, keys(cipherSuites()))
	}
	all.unless((c.TLSCertFile == "") == (c.TLSPrivateKeyFile == ""), "tlsPrivateKeyFile", "it and tlsCertFile need each other")
	all.unless(!c.RunOnce, "runOnce", "the mode is gone; use a Job")
	all.unless(c.SystemCgroups == "" || c.CgroupRoot != "", "systemCgroups", "it needs cgroupRoot")
	all.unless(!value0(c.EnableSystemLogQuery) || *c.EnableSystemLogHandler, "enableSystemLogQuery", "it needs enableSystemLogHandler")
	ascii := strings.IndexFunc(c.PodLogsDir, func(r rune) bool { return r > 127 }) < 0
	all.unless(filepath.IsAbs(c.PodLogsDir) && filepath.Clean(c.PodLogsDir) == c.PodLogsDir && ascii, "podLogsDir", "%q is not a clean absolute path in ASCII", c.PodLogsDir)
	if len(c.DefaultPodSysctls) > 0 {
		all.unless(c.FeatureGates["DefaultPodSysctls"], "defaultPodSysctls", "it needs the feature gate DefaultPodSysctls")
	}
	if c.ReservedSystemCPUs != "" {
		all.unless(c.SystemReservedCgroup == "" && c.KubeReservedCgroup == "", "reservedSystemCPUs", "it excludes systemReservedCgroup and kubeReservedCgroup")
		all.unless(cpulist.Count(c.ReservedSystemCPUs) > 0, "reservedSystemCPUs", "%q is not a list such as 0,2-3", c.ReservedSystemCPUs)
	}
}

func images(all *complaints, c *Configuration) {
	if most := c.MaxParallelImagePulls; most != nil {
		all.unless(*most >= 1, "maxParallelImagePulls", "%d is less than 1", *most)
		all.unless(!*c.SerializeImagePulls || *most <= 1, "maxParallelImagePulls", "it is %d while serializeImagePulls is true", *most)
	}
	if age := c.ImageMaximumGCAge.Duration; age > 0 {
		all.unless(age > c.ImageMinimumGCAge.Duration, "imageMaximumGCAge", "%v is not above imageMinimumGCAge, %v", age, c.ImageMinimumGCAge.Duration)
	}
	oneOf(all, "imagePullCredentialsVerificationPolicy", c.ImagePullCredentialsVerificationPolicy,
		"NeverVerify", "NeverVerifyPreloadedImages", "NeverVerifyAllowlistedImages", "AlwaysVerify")
	all.unless(len(c.PreloadedImagesVerificationAllowlist) == 0 || c.ImagePullCredentialsVerificationPolicy == "NeverVerifyAllowlistedImages",
		"preloadedImagesVerificationAllowlist", "it needs imagePullCredentialsVerificationPolicy NeverVerifyAllowlistedImages")
}

func shutdown(all *complaints, c *Configuration) {
	whole, critical := c.ShutdownGracePeriod.Duration, c.ShutdownGracePeriodCriticalPods.Duration
	all.unless(critical <= whole, "shutdownGracePeriodCriticalPods", "%v is more than shutdownGracePeriod, %v", critical, whole)
	all.unless(whole == 0 || whole >= time.Second, "shutdownGracePeriod", "%v is neither zero nor a second or more", whole)
	all.unless(critical == 0 || critical >= time.Second, "shutdownGracePeriodCriticalPods", "%v is neither zero nor a second or more", critical)
	all.unless(len(c.ShutdownGracePeriodByPodPriority) == 0 || whole == 0 && critical == 0, "shutdownGracePeriodByPodPriority", "it excludes shutdownGracePeriod")
}

// enforcement checks enforceNodeAllocatable. Source: Kubernetes docs, reserve compute resources for system daemons.
func enforcement(all *complaints, c *Configuration) {
	const field = "enforceNodeAllocatable"
	groups := map[string]string{
		"system-reserved": c.SystemReservedCgroup, "system-reserved-compressible": c.SystemReservedCgroup,
		"kube-reserved": c.KubeReservedCgroup, "kube-reserved-compressible": c.KubeReservedCgroup,
	}
	seen := map[string]bool{}
	for _, what := range c.EnforceNodeAllocatable {
		oneOf(all, field, what, append(slices.Sorted(maps.Keys(groups)), "pods", "none")...)
		all.unless(!seen[what], field, "%q is there twice", what)
		seen[what] = true
		if group, needs := groups[what]; needs {
			all.unless(group != "", field, "%q needs %s", what, map[bool]string{true: "systemReservedCgroup", false: "kubeReservedCgroup"}[strings.HasPrefix(what, "system")])
		}
		all.unless(what == "none" || *c.CgroupsPerQOS, field, "%q needs cgroupsPerQOS", what)
	}
	all.unless(!seen["none"] || len(c.EnforceNodeAllocatable) == 1, field, `"none" stands alone`)
	for _, who := range []string{"system-reserved", "kube-reserved"} {
		all.unless(!seen[who] || !seen[who+"-compressible"], field, "%q and %q exclude each other", who, who+"-compressible")
	}
}

// Signals are what eviction watches. Source: Kubernetes docs, node-pressure eviction, eviction signals.
var Signals = []string{"memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available", "imagefs.inodesFree",
	"containerfs.available", "containerfs.inodesFree", "pid.available", "allocatableMemory.available"}

func eviction(all *complaints, c *Configuration) {
	for _, f := range []struct {
		name string
		m    map[string]string
	}{{"evictionHard", c.EvictionHard}, {"evictionSoft", c.EvictionSoft}, {"evictionMinimumReclaim", c.EvictionMinimumReclaim}} {
		for _, signal := range keys(f.m) {
			oneOf(all, f.name, signal, Signals...)
			all.unless(amount(f.m[signal]), f.name+"."+signal, "%q is neither a quantity nor a percentage", f.m[signal])
		}
	}
	for _, signal := range keys(c.EvictionSoft) {
		all.unless(c.EvictionSoftGracePeriod[signal] != "", "evictionSoft."+signal, "it needs a period in evictionSoftGracePeriod")
	}
	for _, signal := range keys(c.EvictionSoftGracePeriod) {
		oneOf(all, "evictionSoftGracePeriod", signal, Signals...)
		d, err := time.ParseDuration(c.EvictionSoftGracePeriod[signal])
		all.unless(err == nil && d >= 0, "evictionSoftGracePeriod."+signal, "%q is not a duration such as 30s", c.EvictionSoftGracePeriod[signal])
	}
}

// amount tells whether text is a quantity or a percentage below 100, not negative.
func amount(text string) bool {
	if share, ok := strings.CutSuffix(text, "%"); ok {
		f, err := strconv.ParseFloat(share, 32)
		return err == nil && f >= 0 && f <= 100
	}
	q, err := resource.ParseQuantity(text)
	return err == nil && q.Sign() >= 0
}

func memoryOf(all *complaints, c *Configuration) {
	type place struct {
		node int32
		what v1.ResourceName
	}
	seen := map[place]bool{}
	for i, r := range c.ReservedMemory {
		field := "reservedMemory[" + strconv.Itoa(i) + "]"
		for what, q := range r.Limits {
			all.unless(what == v1.ResourceMemory || strings.HasPrefix(string(what), v1.ResourceHugePagesPrefix), field, "%q is neither memory nor hugepages-SIZE", what)
			all.unless(!q.IsZero(), field, "%s is zero", what)
			all.unless(!seen[place{r.NumaNode, what}], field, "%s of NUMA node %d is there twice", what, r.NumaNode)
			seen[place{r.NumaNode, what}] = true
		}
	}
}

func taint(all *complaints, field string, t v1.Taint) {
	for _, wrong := range validation.IsQualifiedName(t.Key) {
		all.add(field+".key", "%q: %s", t.Key, wrong)
	}
	for _, wrong := range validation.IsValidLabelValue(t.Value) {
		all.add(field+".value", "%q: %s", t.Value, wrong)
	}
	oneOf(all, field+".effect", t.Effect, v1.TaintEffectNoSchedule, v1.TaintEffectPreferNoSchedule, v1.TaintEffectNoExecute)
	all.unless(t.TimeAdded == nil, field+".timeAdded", "the API server sets it")
}

// value0 is what a pointer points to, or the zero value.
func value0[T any](p *T) (zero T) {
	if p == nil {
		return zero
	}
	return *p
}
