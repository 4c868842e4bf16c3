package config

import (
	"net"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	netutils "k8s.io/utils/net"
)

// The ports of the two servers.
const (
	HealthzPort = 10256
	MetricsPort = 10249
)

// Default returns a configuration in which nothing was said.
func Default() Configuration {
	c := Configuration{TypeMeta: metav1.TypeMeta{Kind: Kind, APIVersion: APIVersion}}
	fillIn(&c)
	return c
}

// fillIn sets what is not said. It may be repeated. What depends on the mode is left to Plan.
// Source: pkg/proxy/apis/config/v1alpha1 SetDefaults_KubeProxyConfiguration.
func fillIn(c *Configuration) {
	or(&c.BindAddress, "0.0.0.0")
	healthz, metrics := "::", "::1"
	if ip := netutils.ParseIPSloppy(c.BindAddress); ip.To4() != nil {
		healthz, metrics = "0.0.0.0", "127.0.0.1"
	}
	or(&c.HealthzBindAddress, healthz)
	or(&c.MetricsBindAddress, metrics)
	c.HealthzBindAddress = withPort(c.HealthzBindAddress, HealthzPort)
	c.MetricsBindAddress = withPort(c.MetricsBindAddress, MetricsPort)

	orPointer(&c.OOMScoreAdj, -999)
	orPointer(&c.IPTables.LocalhostNodePorts, true)
	orPointer(&c.IPTables.MasqueradeBit, 14)
	orPointer(&c.NFTables.MasqueradeBit, 14)
	for _, period := range []*Duration{&c.IPTables.SyncPeriod, &c.IPVS.SyncPeriod, &c.NFTables.SyncPeriod} {
		or(&period.Duration, 30*time.Second)
	}
	or(&c.IPTables.MinSyncPeriod.Duration, time.Second)
	or(&c.NFTables.MinSyncPeriod.Duration, time.Second)
	or(&c.ConfigSyncPeriod.Duration, 15*time.Minute)

	orPointer(&c.Conntrack.MaxPerCore, 32<<10)
	orPointer(&c.Conntrack.Min, 128<<10)
	orPointer(&c.Conntrack.TCPEstablishedTimeout, Duration{Duration: 24 * time.Hour})
	// A half-closed connection whose entry is gone cannot end properly any more, and the port that it was masqueraded to
	// may be given to another. Servers keep such connections for up to an hour. Source: kubernetes issue 32551.
	orPointer(&c.Conntrack.TCPCloseWaitTimeout, Duration{Duration: time.Hour})

	or(&c.ClientConnection.ContentType, "application/vnd.kubernetes.protobuf")
	or(&c.ClientConnection.QPS, 5)
	or(&c.ClientConnection.Burst, 10)
	if c.FeatureGates == nil {
		c.FeatureGates = map[string]bool{}
	}
	or(&c.Logging.Format, "text")
	if f := &c.Logging.FlushFrequency; f.Duration.Duration == 0 && f.wrong == "" {
		*f = FlushFrequency{Duration: Duration{Duration: 5 * time.Second}}
	}
	for _, o := range []*Output{&c.Logging.Options.Text, &c.Logging.Options.JSON} {
		if o.InfoBufferSize.IsZero() {
			o.InfoBufferSize = resource.Quantity{} // however it was written
		}
	}
}

func or[T comparable](at *T, otherwise T) {
	var none T
	if *at == none {
		*at = otherwise
	}
}

func orPointer[T any](at **T, otherwise T) {
	if *at == nil {
		*at = &otherwise
	}
}

// withPort adds the port to an address that has none; what is no address is left for the validation.
func withPort(addr string, port int) string {
	if _, _, err := net.SplitHostPort(addr); err == nil || netutils.ParseIPSloppy(addr) == nil {
		return addr
	}
	return net.JoinHostPort(addr, strconv.Itoa(port))
}
