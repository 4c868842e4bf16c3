package config

import (
	"crypto/tls"
	"sync"
)

// cipherSuites are those that a user may name, by their IANA names. Source: crypto/tls.
var cipherSuites = sync.OnceValue(func() map[string]uint16 {
	all := map[string]uint16{}
	for _, s := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		all[s.Name] = s.ID
	}
	return all
})

// TLS is how the kubelet's server speaks: version and suites as configured; the caller adds certificates.
func TLS(c *Configuration) *tls.Config {
	out := &tls.Config{MinVersion: map[string]uint16{
		"VersionTLS10": tls.VersionTLS10, "VersionTLS11": tls.VersionTLS11, "VersionTLS12": tls.VersionTLS12, "VersionTLS13": tls.VersionTLS13,
	}[c.TLSMinVersion]}
	for _, name := range c.TLSCipherSuites {
		out.CipherSuites = append(out.CipherSuites, cipherSuites()[name])
	}
	for _, id := range c.TLSCurvePreferences {
		out.CurvePreferences = append(out.CurvePreferences, tls.CurveID(id))
	}
	return out
}
