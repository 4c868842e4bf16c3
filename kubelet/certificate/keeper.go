package certificate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"worknode/fault"
	"worknode/kube"
)

// Config is one certificate to keep.
type Config struct {
	Dir, Name string // files Dir/Name-current.pem and its generations
	Signer    string // certificates.k8s.io signer
	// Want is the request to make now; nil while something is missing, such as the node's addresses. See Kick.
	Want func() *x509.CertificateRequest
	// Client is who asks. For a client certificate it depends on what is left: the certificate itself, or the bootstrap
	// credential. Errors name the remedy.
	Client func() (*kube.Client, error)
	// Changed is told of every certificate that comes into force; may be nil.
	Changed func(*tls.Certificate)
}

// Keeper keeps one certificate current. Make it with Open.
type Keeper struct {
	Config
	store store
	kick  chan struct{}

	mu      sync.Mutex
	have    *tls.Certificate
	renewed int // since the start
	failed  int // requests that came to nothing, since the start
}

// Open reads what there is. A broken file is as good as none, and said so.
func Open(c Config) *Keeper {
	k := &Keeper{Config: c, store: store{c.Dir, c.Name}, kick: make(chan struct{}, 1)}
	have, err := k.store.load()
	if err != nil && !fault.Is(err, fault.NotFound) {
		slog.Warn("a certificate on disk cannot be used, a new one is asked for", "err", err)
	}
	k.have = have
	return k
}

// File is where the current certificate and key are, once there is one.
func (k *Keeper) File() string { return k.store.current() }

// Current is the certificate in force, expired or not; nil if there never was one.
func (k *Keeper) Current() *tls.Certificate {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.have
}

// Kick has the Keeper look whether Want has changed. It does not block.
func (k *Keeper) Kick() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// Ensure returns once there is a certificate within its time, asking for one if need be. It gives up only with ctx.
func (k *Keeper) Ensure(ctx context.Context) error {
	for n := 1; !usable(k.Current(), time.Now()); n++ {
		if err := k.renew(ctx); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			slog.Warn("no certificate yet, asking again", "certificate", k.Name, "in", backoff(n), "err", err)
			k.sleep(ctx, backoff(n))
		}
	}
	return nil
}

// Run renews the certificate in time, and when Want changes, until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	failures, lastErr := 0, ""
	for dice := rand.Float64(); ctx.Err() == nil; {
		have, want, now := k.Current(), k.Want(), time.Now()
		wait := time.Hour
		switch {
		case want == nil: // nothing can be asked for yet
		case usable(have, now) && fits(have.Leaf, want) && now.Before(due(have.Leaf, dice)):
			wait = due(have.Leaf, dice).Sub(now)
		default:
			err := k.renew(ctx)
			if err == nil {
				failures, lastErr, dice = 0, "", rand.Float64()
				continue
			}
			failures++
			wait = backoff(failures)
			if said := err.Error(); said != lastErr && ctx.Err() == nil {
				lastErr = said
				slog.Warn("certificate is not renewed, asking again", "certificate", k.Name, "left", left(have, now), "err", err)
			}
		}
		k.sleep(ctx, wait)
	}
}

// left says how long a certificate still holds, for people who wonder about the clock.
func left(c *tls.Certificate, now time.Time) string {
	if c == nil || c.Leaf == nil {
		return "there is none"
	}
	return fmt.Sprintf("%s (it ends at %s, the clock says %s)", c.Leaf.NotAfter.Sub(now).Round(time.Second), c.Leaf.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
}

func (k *Keeper) sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-k.kick:
	case <-timer.C:
	}
}

// renew asks for a certificate and brings it into force.
func (k *Keeper) renew(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			k.mu.Lock()
			k.failed++
			k.mu.Unlock()
		}
	}()
	want := k.Want()
	if want == nil {
		return fault.New(fault.Temporary, "certificate %s: the node has no address yet", k.Name)
	}
	client, err := k.Client()
	if err != nil {
		return err
	}
	key, err := k.store.pendingKey()
	if err != nil {
		return fmt.Errorf("key of certificate %s: %w", k.Name, err)
	}
	chain, err := askFor(ctx, client, k.Signer, want, key, answerWithin)
	if err != nil {
		if fault.Is(err, fault.Denied) || fault.Is(err, fault.Temporary) && ctx.Err() == nil {
			k.store.dropKey() // this request is dead: the next is another
		}
		return err
	}
	pair, err := k.store.save(chain, key, time.Now())
	if err != nil {
		return fmt.Errorf("save certificate %s: %w", k.Name, err)
	}
	k.store.dropKey()
	k.mu.Lock()
	k.have, k.renewed = pair, k.renewed+1
	k.mu.Unlock()
	slog.Info("certificate in force", "certificate", k.Name, "until", pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
	if k.Changed != nil {
		k.Changed(pair)
	}
	return nil
}

// Count is how many certificates came into force and how many requests came to nothing since the start.
func (k *Keeper) Count() (renewed, failed int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.renewed, k.failed
}
