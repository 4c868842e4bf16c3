package probe

import (
	"time"

	v1 "k8s.io/api/core/v1"
)

// rule is a probe's numbers with the API's defaults filled in, so that an undefaulted spec cannot spin.
// Source: Kubernetes API, Probe.
type rule struct {
	delay, period, timeout time.Duration
	succeed, fail          int
}

func ruleOf(p *v1.Probe) rule {
	or := func(n, otherwise int32) int32 {
		if n <= 0 {
			return otherwise
		}
		return n
	}
	return rule{
		delay:   time.Duration(max(p.InitialDelaySeconds, 0)) * time.Second,
		period:  time.Duration(or(p.PeriodSeconds, 10)) * time.Second,
		timeout: time.Duration(or(p.TimeoutSeconds, 1)) * time.Second,
		succeed: int(or(p.SuccessThreshold, 1)),
		fail:    int(or(p.FailureThreshold, 3)),
	}
}

func initial(k Kind, known Verdict) Verdict {
	switch {
	case known != Unknown:
		return known
	case k == Readiness:
		return Failure
	case k == Liveness:
		return Success
	default:
		return Unknown
	}
}

// tally turns single results into a verdict.
type tally struct {
	verdict Verdict
	last    Verdict
	run     int // how often last came in a row
}

// count takes one result and reports whether the verdict changed.
func (t *tally) count(r rule, got Verdict) bool {
	if t.last == got {
		t.run++
	} else {
		t.last, t.run = got, 1
	}
	if (got == Failure && t.run < r.fail) || (got == Success && t.run < r.succeed) || got == t.verdict {
		return false
	}
	t.verdict = got
	return true
}

// settled reports whether this container needs no more probing of this kind: a startup probe has answered either way,
// or a liveness probe has condemned the container (a probe during its stop would only disturb).
func settled(k Kind, v Verdict) bool {
	return v == Failure && k != Readiness || v == Success && k == Startup
}

// The ramp: the first period after the start of a container that must become started or ready. Most servers listen
// within some milliseconds, so waiting a whole period (10 s by default) for the second look wastes what the user waits for.
// Looks in the ramp only bring good news: their failures neither count nor make events, because a server that is
// not there yet was given its first period. So failureThreshold*periodSeconds remains the full time a container has.
const (
	rampStep     = 20 * time.Millisecond
	rampStepExec = 100 * time.Millisecond // a process each, so fewer of them
)

// ramps reports whether a probe looks early. An explicit initial delay is the user's word on when the container is up,
// so the failure right after it counts, and several successes in a row are meant to lie a period apart.
func ramps(k Kind, r rule, v Verdict) bool {
	return k != Liveness && v != Success && r.delay == 0 && r.succeed == 1
}

// firstLook says when a probe runs first: at startedAt plus the delay, at once if that is past. Two exceptions keep to
// the grid of whole periods since then: a liveness probe without a delay (its verdict is Success already; a look at
// time zero could only condemn a server that has not yet opened its port), and a verdict known from before a restart
// of the kubelet, which also keeps all of the node's probes from running in one burst.
func firstLook(k Kind, r rule, known Verdict, started, now time.Time) time.Time {
	base := started.Add(r.delay)
	switch {
	case k == Liveness && r.delay == 0, known == Success && now.After(base):
		return onGrid(base, r.period, now)
	case now.After(base):
		return now
	default:
		return base
	}
}

// nextLook says when to look again after a look at now.
func nextLook(k Kind, r rule, v Verdict, isExec bool, started, now time.Time) time.Time {
	base := started.Add(r.delay)
	grid := onGrid(base, r.period, now)
	if !ramps(k, r, v) || now.Sub(base) >= r.period {
		return grid
	}
	step := rampStep
	if isExec {
		step = rampStepExec
	}
	if early := now.Add(max(step, now.Sub(base))); early.Before(grid) {
		return early
	}
	return grid
}

// inRamp reports whether a failure at now is ignored.
func inRamp(k Kind, r rule, v Verdict, started, now time.Time) bool {
	return ramps(k, r, v) && now.Sub(started) < r.period
}

// onGrid is the first whole period after base that lies after now.
func onGrid(base time.Time, period time.Duration, now time.Time) time.Time {
	if now.Before(base) {
		return base.Add(period)
	}
	return base.Add((now.Sub(base)/period + 1) * period)
}
