package source

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"worknode/fault"
)

// Web runs the pods that a web address answers with, a Pod or a PodList, asked every period until ctx ends. What it last
// said holds while it does not answer or answers nonsense.
func Web(ctx context.Context, url string, header http.Header, node string, period time.Duration, pods Pods) {
	w := &web{url: url, header: header, node: node, set: set{pods: pods}, client: &http.Client{Timeout: 10 * time.Second}}
	tick := time.NewTicker(period)
	defer tick.Stop()
	var said string
	for {
		err := w.ask(ctx)
		switch {
		case err == nil:
			said = ""
		case ctx.Err() == nil && err.Error() != said:
			said = err.Error()
			slog.Error("static pods", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

type web struct {
	url    string
	header http.Header
	node   string
	set    set
	client *http.Client
	last   []byte
}

func (w *web) ask(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url, nil)
	if err != nil {
		return fault.New(fault.Invalid, "static pod URL: %w", err)
	}
	req.Header = w.header.Clone()
	resp, err := w.client.Do(req)
	if err != nil {
		return fmt.Errorf("static pods: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, largest+1))
	switch {
	case err != nil:
		return fmt.Errorf("static pods of %s: %w", w.url, err)
	case resp.StatusCode != http.StatusOK:
		return fault.New(fault.Temporary, "static pods of %s: %s", w.url, resp.Status)
	case len(text) == 0:
		return fault.New(fault.Invalid, "static pods of %s: an empty answer", w.url) // no pods are a list without items
	case len(text) > largest:
		return fault.New(fault.Invalid, "static pods of %s: larger than %d bytes", w.url, largest)
	case bytes.Equal(text, w.last):
		return nil
	}
	all, err := parse(text, w.url, "http", w.node)
	if err != nil {
		return err
	}
	w.last = text
	for _, key := range w.set.tell(all, time.Now()) {
		slog.Error("static pods: two of one name, only the first counts", "url", w.url, "pod", key)
	}
	return nil
}
