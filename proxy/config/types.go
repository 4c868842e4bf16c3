package config

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The one kind and version that there is.
const (
	Group      = "kubeproxy.config.k8s.io"
	APIVersion = Group + "/v1alpha1"
	Kind       = "KubeProxyConfiguration"
)

// Configuration is KubeProxyConfiguration. Names, JSON and meaning are upstream's; its documentation holds.
type Configuration struct {
	metav1.TypeMeta `json:""`

	FeatureGates     map[string]bool  `json:"featureGates,omitempty"`
	ClientConnection ClientConnection `json:"clientConnection"`
	Logging          Logging          `json:"logging,omitempty"`

	HostnameOverride            string `json:"hostnameOverride"`
	BindAddress                 string `json:"bindAddress"` // the node's address; nothing is bound to it
	HealthzBindAddress          string `json:"healthzBindAddress"`
	MetricsBindAddress          string `json:"metricsBindAddress"`
	BindAddressHardFail         bool   `json:"bindAddressHardFail"`
	EnableProfiling             bool   `json:"enableProfiling"`
	ShowHiddenMetricsForVersion string `json:"showHiddenMetricsForVersion"`

	Mode      string    `json:"mode"`
	IPTables  IPTables  `json:"iptables"`
	IPVS      IPVS      `json:"ipvs"`
	NFTables  NFTables  `json:"nftables"`
	Winkernel Winkernel `json:"winkernel"`

	DetectLocalMode string      `json:"detectLocalMode"`
	DetectLocal     DetectLocal `json:"detectLocal"`
	ClusterCIDR     string      `json:"clusterCIDR"` // comma-separated

	NodePortAddresses []string  `json:"nodePortAddresses"`
	OOMScoreAdj       *int32    `json:"oomScoreAdj"`
	Conntrack         Conntrack `json:"conntrack"`
	ConfigSyncPeriod  Duration  `json:"configSyncPeriod"`

	PortRange           string `json:"portRange"`
	WindowsRunAsService bool   `json:"windowsRunAsService,omitempty"`
}

// ClientConnection says how to reach the API.
type ClientConnection struct {
	Kubeconfig         string  `json:"kubeconfig"`
	AcceptContentTypes string  `json:"acceptContentTypes"`
	ContentType        string  `json:"contentType"`
	QPS                float32 `json:"qps"`
	Burst              int32   `json:"burst"`
}

// IPTables holds what the iptables mode takes, the default mode too.
type IPTables struct {
	MasqueradeBit      *int32   `json:"masqueradeBit"`
	MasqueradeAll      bool     `json:"masqueradeAll"`
	LocalhostNodePorts *bool    `json:"localhostNodePorts"`
	SyncPeriod         Duration `json:"syncPeriod"`
	MinSyncPeriod      Duration `json:"minSyncPeriod"`
}

// IPVS holds what the ipvs mode takes.
type IPVS struct {
	SyncPeriod    Duration `json:"syncPeriod"`
	MinSyncPeriod Duration `json:"minSyncPeriod"`
	Scheduler     string   `json:"scheduler"`
	ExcludeCIDRs  []string `json:"excludeCIDRs"`
	StrictARP     bool     `json:"strictARP"`
	TCPTimeout    Duration `json:"tcpTimeout"`
	TCPFinTimeout Duration `json:"tcpFinTimeout"`
	UDPTimeout    Duration `json:"udpTimeout"`
}

// NFTables holds what the nftables mode takes.
type NFTables struct {
	MasqueradeBit *int32   `json:"masqueradeBit"`
	MasqueradeAll bool     `json:"masqueradeAll"`
	SyncPeriod    Duration `json:"syncPeriod"`
	MinSyncPeriod Duration `json:"minSyncPeriod"`
}

// Conntrack holds limits of the kernel's connection tracking.
type Conntrack struct {
	MaxPerCore            *int32    `json:"maxPerCore"`
	Min                   *int32    `json:"min"`
	TCPEstablishedTimeout *Duration `json:"tcpEstablishedTimeout"`
	TCPCloseWaitTimeout   *Duration `json:"tcpCloseWaitTimeout"`
	TCPBeLiberal          bool      `json:"tcpBeLiberal"`
	UDPTimeout            Duration  `json:"udpTimeout"`
	UDPStreamTimeout      Duration  `json:"udpStreamTimeout"`
}

// Winkernel is read so that a configuration for both systems is accepted.
type Winkernel struct {
	NetworkName           string `json:"networkName"`
	SourceVip             string `json:"sourceVip"`
	EnableDSR             bool   `json:"enableDSR"`
	RootHnsEndpointName   string `json:"rootHnsEndpointName"`
	ForwardHealthCheckVip bool   `json:"forwardHealthCheckVip"`
}

// DetectLocal says what pods of this node look like, for the two modes by interface.
type DetectLocal struct {
	BridgeInterface     string `json:"bridgeInterface"`
	InterfaceNamePrefix string `json:"interfaceNamePrefix"`
}

// Logging is component-base's LoggingConfiguration.
type Logging struct {
	Format         string         `json:"format,omitempty"`
	FlushFrequency FlushFrequency `json:"flushFrequency"`
	Verbosity      uint32         `json:"verbosity"`
	VModule        []VModule      `json:"vmodule,omitempty"`
	Options        FormatOptions  `json:"options,omitempty"`
}

// VModule is another verbosity for some source files.
type VModule struct {
	FilePattern string `json:"filePattern"`
	Verbosity   uint32 `json:"verbosity"`
}

// FormatOptions are those of both formats.
type FormatOptions struct {
	Text Output `json:"text,omitempty"`
	JSON Output `json:"json,omitempty"`
}

// Output says where a format writes.
type Output struct {
	SplitStream    bool              `json:"splitStream,omitempty"`
	InfoBufferSize resource.Quantity `json:"infoBufferSize,omitempty"`
}
