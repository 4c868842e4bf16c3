package certificate

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"time"
)

// due is when a certificate is to be renewed: at 70 to 90 % of its life, by dice in [0,1), so that the nodes of a cluster
// do not ask all at once.
func due(c *x509.Certificate, dice float64) time.Time {
	life := c.NotAfter.Sub(c.NotBefore)
	return c.NotBefore.Add(time.Duration(float64(life) * (0.7 + 0.2*dice)))
}

// fits tells whether a certificate says what a request would ask for. Names beyond those are no harm.
func fits(c *x509.Certificate, want *x509.CertificateRequest) bool {
	if c.Subject.CommonName != want.Subject.CommonName {
		return false
	}
	for _, org := range want.Subject.Organization {
		if !slices.Contains(c.Subject.Organization, org) {
			return false
		}
	}
	for _, name := range want.DNSNames {
		if !slices.Contains(c.DNSNames, name) {
			return false
		}
	}
	for _, ip := range want.IPAddresses {
		if !slices.ContainsFunc(c.IPAddresses, ip.Equal) {
			return false
		}
	}
	return true
}

// usable tells whether a certificate is within its time.
func usable(c *tls.Certificate, now time.Time) bool {
	return c != nil && c.Leaf != nil && !now.Before(c.Leaf.NotBefore) && now.Before(c.Leaf.NotAfter)
}

// backoff is how long to wait after the n-th failure in a row, from 1.
func backoff(n int) time.Duration { return min(time.Second<<min(n, 6), 32*time.Second) }
