package act

import (
	"strings"
	"testing"
)

// FuzzAccounts looks users and groups up in files that an image brings.
func FuzzAccounts(f *testing.F) {
	f.Add([]byte("root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:\n"), "web")
	f.Add([]byte("a:x:-1:-1::/\nb:x:99999999999:1::/x\n:::::"), "a")
	f.Add([]byte("wheel:x:10:a,b,,c\n\x00:x:1:"), "10")
	f.Add([]byte(strings.Repeat("x", 70<<10)), "4294967295")
	f.Fuzz(func(t *testing.T, data []byte, name string) {
		if u, _, err := account(data, name); err == nil {
			if strings.ContainsAny(u.Home, "\x00\n") {
				t.Errorf("home %q smuggles a variable in", u.Home)
			}
			if u.UID == 1<<32-1 {
				t.Errorf("user %q of %q means `no change` to the kernel", name, data)
			}
		}
		if g, err := groupID(data, name); err == nil && g == 1<<32-1 {
			t.Errorf("group %q of %q means `no change` to the kernel", name, data)
		}
	})
}
