package probe

import (
	"strings"

	v1 "k8s.io/api/core/v1"
)

// staticEnv holds the variables a probe command may name: only those with a literal value, as the API says that
// probes see neither the downward API nor ConfigMaps.
func staticEnv(env []v1.EnvVar) map[string]string {
	var out map[string]string
	for _, e := range env {
		if e.ValueFrom == nil {
			if out == nil {
				out = make(map[string]string, len(env))
			}
			out[e.Name] = e.Value
		}
	}
	return out
}

// expand replaces $(NAME) by its value; $$ stands for $, and an unknown name stays as written.
// Source: Kubernetes API, Container.command.
func expand(s string, env map[string]string) string {
	if !strings.Contains(s, "$") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i:], ')')
			if end < 0 {
				b.WriteString(s[i:])
				return b.String()
			}
			ref := s[i : i+end+1]
			if v, ok := env[ref[2:len(ref)-1]]; ok {
				b.WriteString(v)
			} else {
				b.WriteString(ref)
			}
			i += end
		default:
			b.WriteByte('$')
		}
	}
	return b.String()
}
