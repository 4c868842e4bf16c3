package certificate

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base32"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	certificates "k8s.io/api/certificates/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"worknode/fault"
	"worknode/kube"
)

// answerWithin is how long a request waits for its approval before it is made anew.
const answerWithin = 15 * time.Minute

// askFor makes a signing request, or takes up the same one made before, and waits until it is issued.
// Errors: Denied if an approver refused or the signer failed, with its words; Temporary if nobody answered in time.
// Repeat: safe, with the same key. Crash: the request stays and is found again by its name.
func askFor(ctx context.Context, client *kube.Client, signer string, want *x509.CertificateRequest, key crypto.Signer, patience time.Duration) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, want, key)
	if err != nil {
		return nil, err
	}
	csr := &certificates.CertificateSigningRequest{
		Spec: certificates.CertificateSigningRequestSpec{
			Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), SignerName: signer, Usages: usages(signer),
		},
	}
	if csr.Name, err = nameOf(key, want, signer); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = client.Create(ctx, kube.CertificateRequests, "", csr, csr)
	if apierrors.IsAlreadyExists(err) {
		err = client.Get(ctx, kube.CertificateRequests, "", csr.Name, csr)
		switch {
		case err != nil:
		case refused(csr) == nil && len(csr.Status.Certificate) == 0:
			return wait(ctx, client, csr.Name)
		case refused(csr) == nil && holds(csr.Status.Certificate, time.Now()):
			return csr.Status.Certificate, nil // issued for our key while we were not looking
		default: // it has been answered, and the answer is of no use any more
			csr.ObjectMeta, csr.Status = metav1.ObjectMeta{GenerateName: "csr-"}, certificates.CertificateSigningRequestStatus{}
			err = client.Create(ctx, kube.CertificateRequests, "", csr, csr)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("certificate request %s: %w", csr.Name, err)
	}
	return wait(ctx, client, csr.Name)
}

// wait watches a request until it is decided.
func wait(ctx context.Context, client *kube.Client, name string) ([]byte, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var issued []byte
	done := errors.New("decided")
	kube.Follow(ctx, client, kube.CertificateRequests, kube.Where{Field: "metadata.name=" + name}, func(d kube.Delta) {
		csr, ok := d.Object.(*certificates.CertificateSigningRequest)
		switch {
		case !ok || context.Cause(ctx) != nil:
		case d.Op == kube.Delete:
			cancel(fault.New(fault.Temporary, "certificate request %s was deleted before anyone decided", name))
		case refused(csr) != nil:
			cancel(refused(csr))
		case len(csr.Status.Certificate) > 0:
			issued = csr.Status.Certificate
			cancel(done)
		}
	})
	switch cause := context.Cause(ctx); {
	case cause == done:
		return issued, nil
	case errors.Is(cause, context.DeadlineExceeded):
		return nil, fault.Hint(fault.New(fault.Temporary, "certificate request %s: nobody has approved it", name), "kubectl certificate approve %s", name)
	default:
		return nil, cause
	}
}

// holds tells whether a chain of PEM begins with a certificate that has not ended.
func holds(chain []byte, now time.Time) bool {
	block, _ := pem.Decode(chain)
	if block == nil {
		return false
	}
	c, err := x509.ParseCertificate(block.Bytes)
	return err == nil && now.Before(c.NotAfter)
}

// refused tells why a request will never be issued; nil if it may.
func refused(csr *certificates.CertificateSigningRequest) error {
	for _, c := range csr.Status.Conditions {
		if (c.Type == certificates.CertificateDenied || c.Type == certificates.CertificateFailed) && c.Status != v1.ConditionFalse {
			return fault.New(fault.Denied, "certificate request %s: %s: %s %s", csr.Name, strings.ToLower(string(c.Type)), c.Reason, c.Message)
		}
	}
	return nil
}

func usages(signer string) []certificates.KeyUsage {
	role := certificates.UsageClientAuth
	if signer == certificates.KubeletServingSignerName {
		role = certificates.UsageServerAuth
	}
	return []certificates.KeyUsage{certificates.UsageDigitalSignature, role} // no key encipherment: our keys are ECDSA
}

// nameOf derives a request's name from what it asks for, so that the same request is made once.
func nameOf(key crypto.Signer, want *x509.CertificateRequest, signer string) (string, error) {
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return "", err
	}
	hash := sha512.New512_256()
	fmt.Fprintf(hash, "%q", []any{public, want.Subject.String(), want.DNSNames, fmt.Sprint(want.IPAddresses), signer})
	return "node-csr-" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(hash.Sum(nil)[:20])), nil
}
