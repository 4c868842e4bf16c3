package probe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
)

// bench runs a Prober in a synctest bubble with a scripted exec handler and writes down what happens at which second.
type bench struct {
	*Prober
	mu    sync.Mutex
	start time.Time
	looks []string // when the handler ran
	says  []string // reports and warnings
	exit  func(since time.Duration) (int, error)
}

func inBubble(t *testing.T, exit func(time.Duration) (int, error), body func(b *bench)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bench{start: time.Now(), exit: exit}
		b.Prober = New(b.exec,
			func(r Result) {
				b.note(&b.says, fmt.Sprintf("%s %s %s", r.Kind, r.Verdict, r.ContainerID))
			},
			func(k Key, reason, msg string) { b.note(&b.says, reason+" "+msg) })
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { b.Run(ctx); close(ended) }()
		body(b)
		stop()
		<-ended
	})
}

func (b *bench) note(to *[]string, s string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	*to = append(*to, fmt.Sprintf("%v %s", time.Since(b.start), s))
}

func (b *bench) exec(_ context.Context, id string, cmd []string, _ time.Duration) ([]byte, int, error) {
	b.note(&b.looks, id)
	exit, err := b.exit(time.Since(b.start))
	return []byte("out"), exit, err
}

// after advances the bubble's clock and returns what was said so far.
func (b *bench) after(d time.Duration) []string {
	time.Sleep(d) // the bubble's clock
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.says)
}

func (b *bench) target(k Kind, id string, p v1.Probe) Target {
	p.Exec = &v1.ExecAction{Command: []string{"check"}}
	return Target{Key: Key{"u", "c", k}, ContainerID: id, StartedAt: time.Now(), Probe: &p,
		Pod: &v1.Pod{}, Container: &v1.Container{Name: "c"}}
}

func want(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("got  %q\nwant %q", got, want)
	}
}

func okAfter(d time.Duration) func(time.Duration) (int, error) {
	return func(since time.Duration) (int, error) {
		if since < d {
			return 1, nil
		}
		return 0, nil
	}
}

func failFrom(d time.Duration) func(time.Duration) (int, error) {
	return func(since time.Duration) (int, error) {
		if since >= d {
			return 1, nil
		}
		return 0, nil
	}
}

func TestReadinessComesWithinTheRamp(t *testing.T) {
	inBubble(t, okAfter(150*time.Millisecond), func(b *bench) {
		b.Set(b.target(Readiness, "id1", v1.Probe{PeriodSeconds: 10}))
		// Looks at 0, 100 and 200 ms; failures of the ramp are silent.
		want(t, b.after(time.Second), "200ms Readiness success id1")
		// Afterwards every period, and nothing new to say.
		want(t, b.after(29*time.Second), "200ms Readiness success id1")
		want(t, b.looks, "0s id1", "100ms id1", "200ms id1", "10s id1", "20s id1", "30s id1")
	})
}

func TestReadinessNeedsItsThresholdsBothWays(t *testing.T) {
	exit := func(since time.Duration) (int, error) {
		if since >= 10*time.Second && since < 40*time.Second {
			return 1, nil
		}
		return 0, nil
	}
	inBubble(t, exit, func(b *bench) {
		b.Set(b.target(Readiness, "id1", v1.Probe{PeriodSeconds: 5, SuccessThreshold: 2, FailureThreshold: 2}))
		got := b.after(60 * time.Second)
		want(t, slices.DeleteFunc(got, func(s string) bool {
			return !slices.Contains([]string{"5s Readiness success id1", "15s Readiness failure id1", "45s Readiness success id1"}, s)
		}),
			"5s Readiness success id1", "15s Readiness failure id1", "45s Readiness success id1")
	})
}

func TestInitialDelayIsWaitedAndThenCounts(t *testing.T) {
	inBubble(t, failFrom(0), func(b *bench) {
		b.Set(b.target(Liveness, "id1", v1.Probe{InitialDelaySeconds: 7, PeriodSeconds: 10, FailureThreshold: 2}))
		want(t, b.after(6999*time.Millisecond))
		want(t, b.after(time.Minute),
			"7s Unhealthy Liveness probe failed: out",
			"17s Unhealthy Liveness probe failed: out",
			"17s Liveness failure id1")
		// A condemned container is left in peace until its successor comes.
		want(t, b.looks, "7s id1", "17s id1")
	})
}

func TestLivenessWithoutDelayGrantsOnePeriod(t *testing.T) {
	inBubble(t, okAfter(2*time.Second), func(b *bench) {
		b.Set(b.target(Liveness, "id1", v1.Probe{PeriodSeconds: 10, FailureThreshold: 1}))
		want(t, b.after(30*time.Second))
		want(t, b.looks, "10s id1", "20s id1", "30s id1")
	})
}

func TestStartupHasThresholdTimesPeriod(t *testing.T) {
	inBubble(t, failFrom(0), func(b *bench) {
		b.Set(b.target(Startup, "id1", v1.Probe{PeriodSeconds: 2, FailureThreshold: 3}))
		want(t, b.after(time.Minute),
			"2s Unhealthy Startup probe failed: out",
			"4s Unhealthy Startup probe failed: out",
			"6s Unhealthy Startup probe failed: out",
			"6s Startup failure id1")
	})
}

func TestStartupEndsWithItsFirstSuccess(t *testing.T) {
	inBubble(t, okAfter(3*time.Second), func(b *bench) {
		b.Set(b.target(Startup, "id1", v1.Probe{PeriodSeconds: 2, FailureThreshold: 30}))
		want(t, b.after(time.Minute), "2s Unhealthy Startup probe failed: out", "4s Startup success id1")
		if last := b.looks[len(b.looks)-1]; last != "4s id1" {
			t.Fatalf("probed on after the success, last at %s", last)
		}
	})
}

func TestSetIsIdempotentAndANewContainerStartsAfresh(t *testing.T) {
	inBubble(t, failFrom(0), func(b *bench) {
		p := v1.Probe{InitialDelaySeconds: 1, PeriodSeconds: 10, FailureThreshold: 2}
		tgt := b.target(Liveness, "id1", p)
		b.Set(tgt)
		b.after(5 * time.Second)
		b.Set(tgt)
		b.after(time.Second)
		want(t, b.looks, "1s id1")
		b.Set(b.target(Liveness, "id2", p)) // at 6 s: the failure of id1 is not held against id2
		want(t, b.after(20*time.Second),
			"1s Unhealthy Liveness probe failed: out",
			"7s Unhealthy Liveness probe failed: out",
			"17s Unhealthy Liveness probe failed: out",
			"17s Liveness failure id2")
	})
}

func TestDropEndsProbes(t *testing.T) {
	inBubble(t, failFrom(0), func(b *bench) {
		b.Set(b.target(Liveness, "id1", v1.Probe{PeriodSeconds: 1}))
		b.Set(b.target(Readiness, "id1", v1.Probe{PeriodSeconds: 1}))
		b.DropKey(Key{"u", "c", Readiness})
		b.after(1500 * time.Millisecond)
		b.Drop("u")
		want(t, b.after(time.Minute), "1s Unhealthy Liveness probe failed: out")
	})
}

func TestRestartedKubeletKeepsVerdictAndPhase(t *testing.T) {
	inBubble(t, failFrom(0), func(b *bench) {
		tgt := b.target(Readiness, "id1", v1.Probe{PeriodSeconds: 10, FailureThreshold: 1})
		tgt.StartedAt, tgt.Initial = time.Now().Add(-43*time.Second), Success
		b.Set(tgt)
		st := b.target(Startup, "id1", v1.Probe{PeriodSeconds: 10})
		st.Initial = Success
		b.Set(st)
		want(t, b.after(8*time.Second), "7s Unhealthy Readiness probe failed: out", "7s Readiness failure id1")
		want(t, b.looks, "7s id1")
	})
}

func TestBrokenAttemptIsRetriedAndNeverCounts(t *testing.T) {
	inBubble(t, func(time.Duration) (int, error) { return 0, errors.New("runtime away") }, func(b *bench) {
		b.Set(b.target(Liveness, "id1", v1.Probe{PeriodSeconds: 10, FailureThreshold: 1}))
		want(t, b.after(11*time.Second), "10s Unhealthy Liveness probe errored: runtime away")
		want(t, b.looks, "10s id1", "10s id1", "10s id1")
	})
}

func TestTimeoutOfACommandIsAFailure(t *testing.T) {
	inBubble(t, func(time.Duration) (int, error) { return 0, fmt.Errorf("exec: %w", context.DeadlineExceeded) }, func(b *bench) {
		b.Set(b.target(Liveness, "id1", v1.Probe{PeriodSeconds: 10, FailureThreshold: 1}))
		want(t, b.after(11*time.Second),
			`10s Unhealthy Liveness probe failed: command timed out: "check" timed out after 1s`, "10s Liveness failure id1")
	})
}

func TestHangingProbesAreBoundedAndTheRestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		running, most := 0, 0
		p := New(func(ctx context.Context, _ string, _ []string, timeout time.Duration) ([]byte, int, error) {
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			time.Sleep(timeout)
			mu.Lock()
			running--
			mu.Unlock()
			return nil, 0, nil
		}, func(Result) {}, func(Key, string, string) {})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { p.Run(ctx); close(ended) }()
		done := 0
		p.report = func(Result) { mu.Lock(); done++; mu.Unlock() }
		for i := range 3 * atOnce {
			p.Set(Target{Key: Key{"u", fmt.Sprint(i), Readiness}, ContainerID: "x", StartedAt: time.Now(),
				Container: &v1.Container{}, Probe: &v1.Probe{TimeoutSeconds: 2, PeriodSeconds: 60,
					ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"x"}}}}})
		}
		time.Sleep(7 * time.Second)
		synctest.Wait()
		stop()
		<-ended
		if most != atOnce || done != 3*atOnce {
			t.Fatalf("%d at once (bound %d), %d of %d answered", most, atOnce, done, 3*atOnce)
		}
	})
}
