package translate

import "strings"

// Expand replaces $(NAME) by what lookup knows and leaves unknown references as written. $$ stands for one dollar.
// Source: Container API, command and args: "Variable references $(VAR_NAME)".
func Expand(s string, lookup func(string) (string, bool)) string {
	if strings.IndexByte(s, '$') < 0 {
		return s
	}
	var b strings.Builder
	for {
		at := strings.IndexByte(s, '$')
		if at < 0 || at == len(s)-1 {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(s[:at])
		s = s[at+1:]
		end := strings.IndexByte(s, ')')
		switch {
		case s[0] == '$':
			b.WriteByte('$')
			s = s[1:]
		case s[0] == '(' && end > 0:
			if v, ok := lookup(s[1:end]); ok {
				b.WriteString(v)
			} else {
				b.WriteString("$" + s[:end+1])
			}
			s = s[end+1:]
		default:
			b.WriteByte('$')
		}
	}
}
