package host

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestClaimRefusesWhatIsNotOurs(t *testing.T) {
	const state = "/run/cluster"
	base := t.TempDir()
	dir := func(name string) string { return filepath.Join(base, name) }
	write := func(path, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(dir("foreign"), "file"), "")
	write(filepath.Join(dir("ours"), ownerFile), state)
	write(filepath.Join(dir("of another cluster"), ownerFile), "/run/other")
	if err := os.Mkdir(dir("empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		dir, want string
	}{
		"new":                {dir("new"), ""},
		"empty":              {dir("empty"), ""},
		"ours":               {dir("ours"), ""},
		"foreign":            {dir("foreign"), "is not empty"},
		"of another cluster": {dir("of another cluster"), "does not belong to the cluster of " + state},
		"relative":           {"relative/dir", "clean absolute path"},
		"the root":           {"/", "clean absolute path"},
		"a top level":        {"/run", "clean absolute path"},
		"not clean":          {base + "/x/../y", "clean absolute path"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := Claim(test.dir, state)
			if test.want == "" {
				if err != nil || !Owned(test.dir, state) {
					t.Errorf("Claim: %v, Owned: %v", err, Owned(test.dir, state))
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestDiscardDeletesOnlyWhatIsOurs(t *testing.T) {
	const state = "/run/cluster"
	ours, foreign := filepath.Join(t.TempDir(), "ours"), t.TempDir()
	if err := Claim(ours, state); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{ours, foreign} {
		if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := Discard(dir, state); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(ours); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("ours is left: %v", err)
	}
	if _, err := os.Stat(filepath.Join(foreign, "file")); err != nil {
		t.Errorf("the foreign directory was touched: %v", err)
	}
	if err := Discard(ours, state); err != nil {
		t.Errorf("a directory that is gone: %v", err)
	}
}

func TestMountsBelow(t *testing.T) {
	const mountinfo = `22 27 0:21 / / rw - ext4 /dev/vda rw
30 22 0:30 / /data/a rw shared:1 - tmpfs tmpfs rw
31 22 0:31 / /data/a/with\040blank rw - tmpfs tmpfs rw
32 22 0:32 / /data/ab rw - tmpfs tmpfs rw
broken
`
	got := mountsBelow(mountinfo, "/data/a")
	if want := []string{"/data/a", "/data/a/with blank"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzMountsBelow(f *testing.F) {
	f.Add("30 22 0:30 / /data/a rw shared:1 - tmpfs tmpfs rw\n", "/data")
	f.Add("\\040\n", "/")
	f.Fuzz(func(t *testing.T, mountinfo, dir string) {
		for _, point := range mountsBelow(mountinfo, dir) {
			if !strings.HasPrefix(point, dir) {
				t.Errorf("%q is not below %q", point, dir)
			}
		}
	})
}

func TestCgroupMounts(t *testing.T) {
	tests := map[string]struct {
		mountinfo string
		want      []string
	}{
		"v1": {
			"1 2 0:1 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n3 1 0:2 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n4 1 0:3 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n",
			[]string{"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/memory"},
		},
		"hybrid": {
			"3 1 0:2 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n4 1 0:3 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
			[]string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified"},
		},
		"v2": {
			"3 1 0:2 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n",
			[]string{"/sys/fs/cgroup"},
		},
		"mounted elsewhere": {"3 1 0:2 / /mnt/cgroup rw - cgroup2 cgroup2 rw\n", nil},
		"mounted twice": {
			"3 1 0:2 / /sys/fs/cgroup/memory rw - cgroup cgroup rw\n4 1 0:2 / /sys/fs/cgroup/memory rw - cgroup cgroup rw\n",
			[]string{"/sys/fs/cgroup/memory"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := cgroupMounts(test.mountinfo); !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestMissingPackagesAreNamedOnce(t *testing.T) {
	present := filepath.Join(t.TempDir(), "present")
	if err := os.WriteFile(present, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	got := missingPackages([]requirement{
		{[]string{"/nonexistent/b"}, "package-b"},
		{[]string{"/nonexistent/a", present}, "package-present"},
		{[]string{"/nonexistent/c"}, "package-b"},
		{[]string{"no-such-program-anywhere"}, "package-a"},
	})
	if want := []string{"package-a", "package-b"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestDelegateNamesTheMissingController(t *testing.T) {
	tests := map[string]struct{ controllers, want string }{
		"all there":    {"cpuset cpu io memory pids", ""},
		"memory lacks": {"cpuset cpu io pids", `"memory"`},
		"none":         {"", `"cpuset"`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.WriteFile(filepath.Join(root, "cgroup.controllers"), []byte(test.controllers), 0o644); err != nil {
				t.Fatal(err)
			}
			err := delegate(t.TempDir(), root)
			if (err == nil) != (test.want == "") || (err != nil && !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestRestoreWithoutARecordDoesNothing(t *testing.T) {
	if err := RestoreSysctls(filepath.Join(t.TempDir(), "none")); err != nil {
		t.Error(err)
	}
}
