package runtime

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"worknode/fault"
	"worknode/runtime/image"
	"worknode/runtime/registry"
	"worknode/runtime/verify"
)

// pulls are the pulls under way. Those who ask for one image with the same credentials share one.
type pulls struct {
	mu      sync.Mutex
	running map[pullKey]*pull
}

type pullKey struct {
	ref   string
	login registry.Credentials // another's right to an image is not ours
}

type pull struct {
	waiters  int
	progress image.Progress
	cancel   context.CancelFunc
	done     chan struct{} // closed when the fields below are set
	image    image.Image
	err      error
}

// join runs fn once for all who wait for the same key. When the last of them gives up, its context ends. seen, which may
// be nil, hears where to see how far it is.
func (p *pulls) join(ctx context.Context, key pullKey, seen func(*image.Progress), start func(fn func(context.Context)), fn func(context.Context) (image.Image, error)) (image.Image, error) {
	p.mu.Lock()
	one := p.running[key]
	if one == nil {
		one = &pull{done: make(chan struct{}), err: errors.New("the task that pulled it panicked, see the log")}
		var ours context.Context
		ours, one.cancel = context.WithCancel(context.WithoutCancel(ctx))
		if p.running == nil {
			p.running = map[pullKey]*pull{}
		}
		p.running[key] = one
		start(func(task context.Context) {
			stop := context.AfterFunc(task, one.cancel) // the runtime's end ends it, too
			defer stop()
			defer close(one.done)
			defer p.forget(key, one)
			one.image, one.err = fn(image.Watched(ours, &one.progress))
		})
	}
	one.waiters++
	p.mu.Unlock()
	if seen != nil {
		seen(&one.progress)
	}
	select {
	case <-one.done:
		return one.image, one.err
	case <-ctx.Done():
	}
	p.mu.Lock()
	if one.waiters--; one.waiters == 0 {
		one.cancel()
		if p.running[key] == one {
			delete(p.running, key) // nobody joins a pull that is ending
		}
	}
	p.mu.Unlock()
	return image.Image{}, ctx.Err()
}

func (p *pulls) forget(key pullKey, one *pull) {
	one.cancel()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running[key] == one {
		delete(p.running, key)
	}
}

// PullImage brings in an image: from a tar of the images folder if one has it, else from its registry, with auth (which
// may be nil) for hosts that ask for a log-in. It ends with ctx, unless others wait for the same image.
func (l *loop) PullImage(ctx context.Context, ref string, auth *cri.AuthConfig) (image.Image, error) {
	return l.pullImage(ctx, ref, auth, nil)
}

func (l *loop) pullImage(ctx context.Context, ref string, auth *cri.AuthConfig, seen func(*image.Progress)) (image.Image, error) {
	im, err := l.images.FromTar(ctx, ref, false)
	if !fault.Is(err, fault.NotFound) {
		return im, err
	}
	name, err := image.Parse(ref)
	if err != nil {
		return image.Image{}, err
	}
	login, err := credentials(auth)
	if err != nil {
		return image.Image{}, fmt.Errorf("pull image %s: %w", ref, err)
	}
	start := func(fn func(context.Context)) { l.tasks.Go("pull "+name.String(), fn) }
	im, err = l.pulls.join(ctx, pullKey{name.String(), login}, seen, start, func(ctx context.Context) (image.Image, error) {
		begin := time.Now()
		im, err := l.fetch(ctx, name, login)
		l.counts.Pulls.Add("", outcome(err), time.Since(begin))
		return im, err
	})
	if err != nil {
		if late, tar := l.images.FromTar(ctx, ref, true); tar == nil { // a file that is being written may be the one
			return late, nil
		}
		err = fmt.Errorf("pull image %s: %w", ref, err)
		if l.opt.ImageDir != "" && (fault.Is(err, fault.Temporary) || fault.Is(err, fault.NotFound)) {
			err = fault.Hint(err, "a node without the registry takes the image as a tar file in %s", l.opt.ImageDir)
		}
	}
	return im, err
}

func (l *loop) fetch(ctx context.Context, name image.Ref, login registry.Credentials) (image.Image, error) {
	begin := time.Now()
	repository, err := l.registry.Open(registry.Ref(name), login)
	if err != nil {
		return image.Image{}, err
	}
	defer repository.Close()
	im, err := l.images.Fetch(ctx, name.String(), vetted{repository, l.policy.Load(), name.Registry + "/" + name.Repository})
	if err == nil {
		slog.Info("image pulled", "image", name, "id", im.ID, "size", im.Size, "took", time.Since(begin).Round(time.Millisecond))
	}
	return im, err
}

// vetted is a repository whose images must pass the policy.
type vetted struct {
	*registry.Repository
	policy *verify.Policy
	name   string
}

// Vet implements image.Vetter.
func (v vetted) Vet(ctx context.Context, sums ...digest.Digest) error {
	return v.policy.Check(ctx, v.name, v.Repository, sums...)
}

// credentials reads what a kubelet found for an image. Source: CRI AuthConfig; "auth" is base64 of "user:password".
func credentials(a *cri.AuthConfig) (registry.Credentials, error) {
	c := registry.Credentials{
		Server: a.GetServerAddress(), Username: a.GetUsername(), Password: registry.Secret(a.GetPassword()),
		IdentityToken: registry.Secret(a.GetIdentityToken()), RegistryToken: registry.Secret(a.GetRegistryToken()),
	}
	if c.Username != "" || c.IdentityToken != "" || c.RegistryToken != "" || a.GetAuth() == "" {
		return c, nil
	}
	data, err := base64.StdEncoding.DecodeString(a.GetAuth())
	user, password, ok := strings.Cut(string(data), ":")
	if err != nil || !ok {
		return registry.Credentials{}, fault.New(fault.Invalid, "field auth of the credentials is not base64 of user:password")
	}
	c.Username, c.Password = user, registry.Secret(strings.TrimRight(password, "\x00"))
	return c, nil
}
