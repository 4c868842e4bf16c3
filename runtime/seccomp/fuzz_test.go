package seccomp

import "testing"

// FuzzProfile compiles profiles that pods name.
func FuzzProfile(f *testing.F) {
	for _, text := range []string{
		`{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64"],"syscalls":[{"names":["read","write"],"action":"SCMP_ACT_ALLOW"}]}`,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["socket"],"action":"SCMP_ACT_ERRNO","errnoRet":1,"args":[{"index":0,"value":40,"valueTwo":1,"op":"SCMP_CMP_MASKED_EQ"}]}]}`,
		`{"defaultAction":"SCMP_ACT_LOG","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],"syscalls":[{"names":["x"],"action":"SCMP_ACT_TRAP","includes":{"caps":["CAP_SYS_ADMIN"],"minKernel":"4.8"}}]}`,
		`{}`, `[]`, `{"defaultAction":"SCMP_ACT_NOTIFY"}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var c Cache
		if p, err := c.Load(data, []string{"CAP_CHOWN"}); err == nil && len(p.Filter) > 4096 {
			t.Errorf("a filter of %d instructions, the kernel takes 4096", len(p.Filter))
		}
		_, _ = Profile(data, nil)
	})
}
