package stream

import (
	"crypto/rand"
	"encoding/base64"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"worknode/fault"
)

const (
	slipLife = time.Minute
	maxSlips = 1000
)

// slips are requests on their way from the CRI socket to the streaming server. Who knows a slip may use it once: it is
// the only key to the HTTP server, which any process of the node can reach. The zero value is ready.
type slips struct {
	mu      sync.Mutex
	waiting map[string]slip
}

type slip struct {
	request proto.Message
	until   time.Time
}

// add returns the slip for a request. Errors: Exhausted when too many wait.
func (s *slips) add(r proto.Message) (string, error) {
	var b [16]byte
	rand.Read(b[:])
	key := base64.RawURLEncoding.EncodeToString(b[:])
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting == nil {
		s.waiting = map[string]slip{}
	}
	for k, w := range s.waiting {
		if now.After(w.until) {
			delete(s.waiting, k)
		}
	}
	if len(s.waiting) >= maxSlips {
		return "", fault.New(fault.Exhausted, "%d streaming requests wait for their clients", maxSlips)
	}
	s.waiting[key] = slip{r, now.Add(slipLife)}
	return key, nil
}

// take uses a slip up.
func (s *slips) take(key string) (proto.Message, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, ok := s.waiting[key]
	delete(s.waiting, key)
	return w.request, ok && time.Now().Before(w.until)
}
