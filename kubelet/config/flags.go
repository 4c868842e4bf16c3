package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"worknode/fault"
)

// shape is how a flag's text becomes a field's value.
type shape int

const (
	text    shape = iota // as it stands
	yesNo                // true, false
	number               // an integer
	seconds              // a duration, such as 10s
	list                 // a,b
	pairs                // a=b,c=d
	less                 // a<b,c<d
	gates                // A=true,B=false
	headers              // a:b,c:d; a key may come twice
	taints               // key=value:effect, key:effect
	memory               // numa:type=amount,type=amount; the flag may come twice
)

// flags are the settings that upstream's kubelet still takes from the command line, by the path of their field. Upstream has
// deprecated all of them in favour of the file, but kubeadm, kind and cloud images pass some.
// Source: kubelet command line reference, 1.37.
var flags = map[string]struct {
	path string
	as   shape
}{
	"enable-server": {"enableServer", yesNo}, "fail-swap-on": {"failSwapOn", yesNo}, "pod-manifest-path": {"staticPodPath", text},
	"sync-frequency": {"syncFrequency", seconds}, "file-check-frequency": {"fileCheckFrequency", seconds}, "http-check-frequency": {"httpCheckFrequency", seconds},
	"manifest-url": {"staticPodURL", text}, "manifest-url-header": {"staticPodURLHeader", headers}, "address": {"address", text}, "port": {"port", number},
	"read-only-port": {"readOnlyPort", number}, "fail-cgroupv1": {"failCgroupV1", yesNo},
	"container-runtime-endpoint": {"containerRuntimeEndpoint", text}, "image-service-endpoint": {"imageServiceEndpoint", text},
	"anonymous-auth": {"authentication.anonymous.enabled", yesNo}, "authentication-token-webhook": {"authentication.webhook.enabled", yesNo},
	"authentication-token-webhook-cache-ttl": {"authentication.webhook.cacheTTL", seconds}, "client-ca-file": {"authentication.x509.clientCAFile", text},
	"authorization-mode": {"authorization.mode", text}, "authorization-webhook-cache-authorized-ttl": {"authorization.webhook.cacheAuthorizedTTL", seconds},
	"authorization-webhook-cache-unauthorized-ttl": {"authorization.webhook.cacheUnauthorizedTTL", seconds},
	"tls-cert-file": {"tlsCertFile", text}, "tls-private-key-file": {"tlsPrivateKeyFile", text}, "rotate-server-certificates": {"serverTLSBootstrap", yesNo},
	"tls-cipher-suites": {"tlsCipherSuites", list}, "tls-min-version": {"tlsMinVersion", text}, "rotate-certificates": {"rotateCertificates", yesNo},
	"registry-qps": {"registryPullQPS", number}, "registry-burst": {"registryBurst", number}, "event-qps": {"eventRecordQPS", number}, "event-burst": {"eventBurst", number},
	"enable-debugging-handlers": {"enableDebuggingHandlers", yesNo}, "contention-profiling": {"enableContentionProfiling", yesNo},
	"healthz-port": {"healthzPort", number}, "healthz-bind-address": {"healthzBindAddress", text}, "oom-score-adj": {"oomScoreAdj", number},
	"cluster-domain": {"clusterDomain", text}, "volume-plugin-dir": {"volumePluginDir", text}, "cluster-dns": {"clusterDNS", list},
	"streaming-connection-idle-timeout": {"streamingConnectionIdleTimeout", seconds}, "node-status-update-frequency": {"nodeStatusUpdateFrequency", seconds},
	"minimum-image-ttl-duration": {"imageMinimumGCAge", seconds}, "image-gc-high-threshold": {"imageGCHighThresholdPercent", number},
	"image-gc-low-threshold": {"imageGCLowThresholdPercent", number}, "volume-stats-agg-period": {"volumeStatsAggPeriod", seconds},
	"feature-gates": {"featureGates", gates}, "kubelet-cgroups": {"kubeletCgroups", text}, "system-cgroups": {"systemCgroups", text}, "provider-id": {"providerID", text},
	"cgroups-per-qos": {"cgroupsPerQOS", yesNo}, "cgroup-driver": {"cgroupDriver", text}, "cgroup-root": {"cgroupRoot", text},
	"cpu-manager-policy": {"cpuManagerPolicy", text}, "cpu-manager-policy-options": {"cpuManagerPolicyOptions", pairs}, "cpu-manager-reconcile-period": {"cpuManagerReconcilePeriod", seconds},
	"qos-reserved": {"qosReserved", pairs}, "topology-manager-policy": {"topologyManagerPolicy", text}, "topology-manager-scope": {"topologyManagerScope", text},
	"topology-manager-policy-options": {"topologyManagerPolicyOptions", pairs}, "memory-manager-policy": {"memoryManagerPolicy", text}, "reserved-memory": {"reservedMemory", memory},
	"runtime-request-timeout": {"runtimeRequestTimeout", seconds}, "hairpin-mode": {"hairpinMode", text}, "max-pods": {"maxPods", number}, "pod-cidr": {"podCIDR", text},
	"pod-max-pids": {"podPidsLimit", number}, "resolv-conf": {"resolvConf", text}, "runonce": {"runOnce", yesNo}, "cpu-cfs-quota": {"cpuCFSQuota", yesNo},
	"cpu-cfs-quota-period": {"cpuCFSQuotaPeriod", seconds}, "enable-controller-attach-detach": {"enableControllerAttachDetach", yesNo},
	"make-iptables-util-chains": {"makeIPTablesUtilChains", yesNo}, "container-log-max-size": {"containerLogMaxSize", text}, "container-log-max-files": {"containerLogMaxFiles", number},
	"allowed-unsafe-sysctls": {"allowedUnsafeSysctls", list}, "node-status-max-images": {"nodeStatusMaxImages", number}, "kernel-memcg-notification": {"kernelMemcgNotification", yesNo},
	"local-storage-capacity-isolation": {"localStorageCapacityIsolation", yesNo}, "max-open-files": {"maxOpenFiles", number}, "kube-api-content-type": {"contentType", text},
	"kube-api-qps": {"kubeAPIQPS", number}, "kube-api-burst": {"kubeAPIBurst", number}, "serialize-image-pulls": {"serializeImagePulls", yesNo},
	"eviction-hard": {"evictionHard", less}, "eviction-soft": {"evictionSoft", less}, "eviction-soft-grace-period": {"evictionSoftGracePeriod", pairs},
	"eviction-pressure-transition-period": {"evictionPressureTransitionPeriod", seconds}, "eviction-max-pod-grace-period": {"evictionMaxPodGracePeriod", number},
	"eviction-minimum-reclaim": {"evictionMinimumReclaim", pairs}, "pods-per-core": {"podsPerCore", number}, "protect-kernel-defaults": {"protectKernelDefaults", yesNo},
	"reserved-cpus": {"reservedSystemCPUs", text}, "system-reserved": {"systemReserved", pairs}, "kube-reserved": {"kubeReserved", pairs},
	"enforce-node-allocatable": {"enforceNodeAllocatable", list}, "system-reserved-cgroup": {"systemReservedCgroup", text}, "kube-reserved-cgroup": {"kubeReservedCgroup", text},
	"register-node": {"registerNode", yesNo}, "register-with-taints": {"registerWithTaints", taints}, "seccomp-default": {"seccompDefault", yesNo},
	"pod-logs-dir": {"podLogsDir", text}, // ours: upstream has the field alone
}

// AddFlags gives a command line all settings that have a flag. What users pass lands in the map, for Sources.Flags.
func AddFlags(set *pflag.FlagSet, into map[string]any) {
	for _, name := range keys(flags) {
		f := flags[name]
		flag := set.VarPF(&setting{into: into, name: name, path: strings.Split(f.path, "."), as: f.as}, name, "", "KubeletConfiguration "+f.path)
		if f.as == yesNo {
			flag.NoOptDefVal = "true"
		}
	}
}

// setting is a flag that writes into a tree of fields.
type setting struct {
	into map[string]any
	name string
	path []string
	as   shape
	said []string
}

func (s *setting) String() string { return strings.Join(s.said, ",") }
func (s *setting) Type() string {
	return [...]string{"text", "true|false", "number", "duration", "a,b", "a=b,c=d", "a<b,c<d", "A=true,B=false", "name:value", "key=value:effect", "numa:type=amount"}[s.as]
}

// Set is pflag's; a flag that is given again replaces a value and adds to a list, as upstream's do.
func (s *setting) Set(said string) error {
	s.said = append(s.said, said)
	v, err := s.as.read(strings.TrimSpace(said))
	if err != nil {
		return err
	}
	at := s.into
	for _, field := range s.path[:len(s.path)-1] {
		below, ok := at[field].(map[string]any)
		if !ok {
			below = map[string]any{}
			at[field] = below
		}
		at = below
	}
	last := s.path[len(s.path)-1]
	switch have := at[last].(type) {
	case []any:
		at[last] = append(have, v.([]any)...)
	case map[string]any:
		for k, one := range v.(map[string]any) {
			if more, ok := have[k].([]any); ok {
				one = append(more, one.([]any)...)
			}
			have[k] = one
		}
	default:
		at[last] = v
	}
	return nil
}

func (as shape) read(said string) (any, error) {
	switch as {
	case yesNo:
		return strconv.ParseBool(said)
	case number:
		return strconv.ParseInt(said, 10, 64)
	case seconds:
		d, err := time.ParseDuration(said)
		return d.String(), err
	case list, taints, memory:
		out := []any{}
		parts := strings.Split(said, ",")
		if as == memory {
			parts = []string{said}
		}
		for _, part := range parts {
			if part = strings.TrimSpace(part); part == "" {
				continue
			}
			one, err := as.item(part)
			if err != nil {
				return nil, err
			}
			out = append(out, one)
		}
		return out, nil
	case pairs, less, gates, headers:
		out := map[string]any{}
		for part := range strings.SplitSeq(said, ",") {
			if part = strings.TrimSpace(part); part == "" {
				continue
			}
			between := map[shape]string{pairs: "=", gates: "=", less: "<", headers: ":"}[as]
			k, v, ok := strings.Cut(part, between)
			if !ok {
				return nil, fault.New(fault.Invalid, "%q has no %q", part, between)
			}
			k, v = strings.TrimSpace(k), strings.TrimSpace(v)
			switch as {
			case gates:
				on, err := strconv.ParseBool(v)
				if err != nil {
					return nil, fault.New(fault.Invalid, "%s: %q is neither true nor false", k, v)
				}
				out[k] = on
			case headers:
				have, _ := out[k].([]any)
				out[k] = append(have, v)
			default:
				out[k] = v
			}
		}
		return out, nil
	default:
		return said, nil
	}
}

// item reads one element of a list.
func (as shape) item(part string) (any, error) {
	switch as {
	case taints: // key=value:effect or key:effect
		key, effect, ok := strings.Cut(part, ":")
		if !ok {
			return nil, fault.New(fault.Invalid, "taint %q has no effect (write key=value:NoSchedule)", part)
		}
		key, v, _ := strings.Cut(key, "=")
		taint := map[string]any{"key": key, "effect": effect}
		if v != "" {
			taint["value"] = v
		}
		return taint, nil
	case memory:
		node, limits, _ := strings.Cut(part, ":")
		numa, err := strconv.Atoi(node)
		if err != nil {
			return nil, fmt.Errorf("NUMA node %q: %w", node, err)
		}
		amounts, err := pairs.read(limits)
		return map[string]any{"numaNode": numa, "limits": amounts}, err
	default:
		return part, nil
	}
}
