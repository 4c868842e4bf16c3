package act

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"worknode/kubelet/plan"
	"worknode/kubelet/state"
	"worknode/kubelet/translate"
)

// Marks are small files under Root/did/UID that say what was begun and must not begin twice: a hook of a container, the
// pod's end. They are written before the thing itself and removed with the pod's volumes. They are not synced: a power
// cut ends the containers too.

type mark struct {
	hook plan.Kind
	id   string
}

func (a *Act) didDir(uid types.UID) string { return filepath.Join(a.Root, "did", string(uid)) }

// begin notes that a hook of a container is about to run. first is false if that was noted before.
func (a *Act) begin(uid types.UID, m mark) (first bool, err error) {
	f, err := a.create(uid, string(m.hook)+"-"+m.id, os.O_EXCL)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("note that the %s hook of container %s begins: %w", m.hook, m.id, err)
	}
	return true, f.Close()
}

func (a *Act) create(uid types.UID, name string, flag int) (*os.File, error) {
	path := filepath.Join(a.didDir(uid), name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|flag, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(a.didDir(uid), 0o700); err != nil {
			return nil, err
		}
		f, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|flag, 0o600)
	}
	return f, err
}

// did reads the marks of the pods that labels select: all, or the one of that UID.
func (a *Act) did(labels map[string]string) map[mark]state.Hook {
	pods := []string{labels[translate.LabelPodUID]}
	if pods[0] == "" {
		pods = nil
		entries, _ := os.ReadDir(filepath.Join(a.Root, "did"))
		for _, e := range entries {
			pods = append(pods, e.Name())
		}
	}
	var out map[mark]state.Hook
	for _, uid := range pods {
		entries, _ := os.ReadDir(a.didDir(types.UID(uid)))
		for _, e := range entries {
			hook, id, ok := strings.Cut(e.Name(), "-")
			if !ok {
				continue
			}
			if out == nil {
				out = map[mark]state.Hook{}
			}
			out[mark{plan.Kind(hook), id}] = state.HookBegun
		}
	}
	return out
}

// KeepEnd notes a pod's end, so that a restarted kubelet goes on with the same deadline.
func (a *Act) KeepEnd(uid types.UID, end state.End) error {
	data, err := json.Marshal(end)
	if err != nil {
		return err
	}
	f, err := a.create(uid, "end.new", os.O_TRUNC)
	if err != nil {
		return fmt.Errorf("note the end of pod %s: %w", uid, err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("note the end of pod %s: %w", uid, err)
	}
	return os.Rename(f.Name(), filepath.Join(a.didDir(uid), "end"))
}

// KeptEnd reads what KeepEnd noted; zero if there is nothing, or nothing that can be read.
func (a *Act) KeptEnd(uid types.UID) (end state.End) {
	data, err := os.ReadFile(filepath.Join(a.didDir(uid), "end"))
	if err != nil || json.Unmarshal(data, &end) != nil {
		return state.End{}
	}
	return end
}

// Marked lists the pods that have marks.
func (a *Act) Marked() []types.UID {
	entries, _ := os.ReadDir(filepath.Join(a.Root, "did"))
	out := make([]types.UID, 0, len(entries))
	for _, e := range entries {
		out = append(out, types.UID(e.Name()))
	}
	return out
}

func (a *Act) forgetDid(uid types.UID) error { return os.RemoveAll(a.didDir(uid)) }
