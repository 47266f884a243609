package files

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func store(t testing.TB) (*Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir, -1, -1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, dir
}

func read(t testing.TB, s *Store, name string) (string, error) {
	t.Helper()
	f, _, err := s.Open(name)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(f)
	return string(b), err
}

func TestParsePath(t *testing.T) {
	tests := map[string]struct{ in, want string }{
		"empty is the root": {"", "."}, "root": {"/", "."}, "name": {"a", "a"}, "nested": {"a/b/c", "a/b/c"},
		"leading slashes": {"//a", "a"}, "trailing slash": {"a/", "a"}, "doubled slash": {"a//b", "a/b"}, "dot": {"./a/./b", "a/b"},
		"dots in a name": {"..a/b..", "..a/b.."}, "backslash is a character": {`a\..\b`, `a\..\b`},
		"parent": {"..", "!"}, "parent first": {"../a", "!"}, "parent inside": {"a/../b", "!"}, "parent last": {"a/..", "!"},
		"NUL": {"a\x00b", "!"}, "long component": {strings.Repeat("a", 256), "!"}, "long path": {strings.Repeat("a/", 2048), "!"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParsePath(tt.in)
			if tt.want == "!" {
				if !errors.Is(err, ErrPath) {
					t.Errorf("got %q, %v", got, err)
				}
				return
			}
			if got != tt.want || err != nil {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"", "/", "a/b", "../x", "a/../../b", "./.", "a\x00", "..\\..", strings.Repeat("a/", 3000)} {
		f.Add(s)
	}
	dir := filepath.Join(f.TempDir(), "root")
	f.Fuzz(func(t *testing.T, in string) {
		name, err := ParsePath(in)
		if err != nil {
			return
		}
		if full := filepath.Join(dir, name); full != dir && !strings.HasPrefix(full, dir+"/") {
			t.Fatalf("%q leads to %q", in, full)
		}
		if !filepath.IsLocal(name) || strings.IndexByte(name, 0) >= 0 {
			t.Fatalf("%q became %q", in, name)
		}
		if again, err := ParsePath(name); err != nil || again != name {
			t.Fatalf("%q is not stable: %q, %v", name, again, err)
		}
	})
}

func TestPathsCannotLeaveTheRootThroughLinks(t *testing.T) {
	s, dir := store(t)
	outside := filepath.Join(filepath.Dir(dir), "outside")
	if err := os.Mkdir(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	links := map[string]string{
		"abs-file": secret, "rel-file": "../outside/secret", "abs-dir": outside, "rel-dir": "../outside",
		"up": "..", "chain": "rel-dir", "root": "/", "inner-up": "sub/../../outside", "proc": "/proc/self/root",
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{
		"abs-file", "rel-file", "abs-dir/secret", "rel-dir/secret", "up/outside/secret", "chain/secret",
		"root/etc/passwd", "inner-up/secret", "proc/etc/passwd", "abs-dir", "up",
	} {
		if got, err := read(t, s, name); !errors.Is(err, ErrEscape) {
			t.Errorf("read %s: %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"abs-dir/new", "rel-dir/new", "up/outside/new", "chain/new", "inner-up/new", "root/tmp/new"} {
		for _, parents := range []bool{false, true} {
			if _, err := s.Put(name, strings.NewReader("x"), PutOptions{Mode: 0o644, Parents: parents}); !errors.Is(err, ErrEscape) && !errors.Is(err, fs.ErrExist) {
				t.Errorf("write %s: %v", name, err)
			}
		}
	}
	for _, name := range []string{"abs-dir/secret", "rel-dir/secret", "up/outside/secret"} {
		if err := s.Remove(name, true); !errors.Is(err, ErrEscape) {
			t.Errorf("remove %s: %v", name, err)
		}
	}
	if err := s.Mkdir("rel-dir/newdir"); err == nil {
		t.Error("a directory was made outside")
	}
	// Replacing or deleting a link touches the link, not its target.
	if _, err := s.Put("abs-file", strings.NewReader("mine"), PutOptions{Mode: 0o644}); err != nil {
		t.Error(err)
	}
	if err := s.Remove("rel-dir", true); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(secret); string(b) != "secret" || err != nil {
		t.Errorf("the file outside is now %q, %v", b, err)
	}
	if list, err := os.ReadDir(outside); len(list) != 1 || err != nil {
		t.Errorf("outside holds %v, %v", list, err)
	}
}

func TestLinksInsideTheRootAreFollowed(t *testing.T) {
	s, dir := store(t)
	if err := os.MkdirAll(dir+"/a/b", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/a/b/f", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("a/b", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if got, err := read(t, s, "link/f"); got != "x" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// A directory that is swapped for a link to the outside while files are written
// through it: nothing may ever land outside.
func TestRaceOfDirectoryAgainstLinkNeverWritesOutside(t *testing.T) {
	s, dir := store(t)
	outside := filepath.Join(filepath.Dir(dir), "outside")
	for _, d := range []string{outside, dir + "/real"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			_ = os.Rename(dir+"/real", dir+"/d")
			_ = os.Rename(dir+"/d", dir+"/real")
			_ = os.Symlink(outside, dir+"/d")
			_ = os.Remove(dir + "/d")
		}
	})
	written := 0
	for i := range 3000 {
		if _, err := s.Put(fmt.Sprintf("d/f%d", i%10), strings.NewReader("x"), PutOptions{Mode: 0o644}); err == nil {
			written++
		}
	}
	close(stop)
	wg.Wait()
	list, err := os.ReadDir(outside)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if e.Name() != "real" { // the renamed directory itself cannot land here either
			t.Errorf("outside: %s", e.Name())
		}
	}
	t.Logf("%d of 3000 writes hit the directory", written)
}

func TestPut(t *testing.T) {
	s, dir := store(t)
	if n, err := s.Put("f", strings.NewReader("one"), PutOptions{Mode: 0o640}); n != 3 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if _, err := s.Put("f", strings.NewReader("two!"), PutOptions{Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	if got, _ := read(t, s, "f"); got != "two!" {
		t.Errorf("got %q", got)
	}
	if st, err := os.Stat(dir + "/f"); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if _, err := s.Put("f", strings.NewReader("x"), PutOptions{NoReplace: true}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("NoReplace: %v", err)
	}
	if _, err := s.Put("new", strings.NewReader("x"), PutOptions{Mode: 0o600, NoReplace: true}); err != nil {
		t.Error(err)
	}
	if _, err := s.Put("a/b/c", strings.NewReader("x"), PutOptions{Mode: 0o644}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without parents: %v", err)
	}
	if _, err := s.Put("a/b/c", strings.NewReader("x"), PutOptions{Mode: 0o644, Parents: true}); err != nil {
		t.Error(err)
	}
	for _, name := range []string{".", "a", "a/b"} {
		if _, err := s.Put(name, strings.NewReader("x"), PutOptions{Mode: 0o644}); !errors.Is(err, ErrIsDir) {
			t.Errorf("over directory %s: %v", name, err)
		}
	}
	if _, err := s.Put("f/x", strings.NewReader("x"), PutOptions{Mode: 0o644}); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("below a file: %v", err)
	}
	noTemps(t, dir)
}

func noTemps(t testing.TB, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), TempPrefix) {
			t.Errorf("left behind: %s", p)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestFailedUploadChangesNothing(t *testing.T) {
	s, dir := store(t)
	if _, err := s.Put("f", strings.NewReader("old"), PutOptions{Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	broken := io.MultiReader(strings.NewReader("new content"), errReader{})
	if _, err := s.Put("f", broken, PutOptions{Mode: 0o644}); !errors.Is(err, errBroken) {
		t.Errorf("got %v", err)
	}
	if got, _ := read(t, s, "f"); got != "old" {
		t.Errorf("got %q", got)
	}
	noTemps(t, dir)
}

var errBroken = errors.New("broken")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errBroken }

func TestConcurrentUploadsNeverMix(t *testing.T) {
	s, dir := store(t)
	const size = 256 << 10
	check := func() {
		got, err := read(t, s, "f")
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if err != nil || len(got) != size || strings.Count(got, got[:1]) != size {
			t.Errorf("a mixed or partial file of %d bytes, %v", len(got), err)
		}
	}
	stop := make(chan struct{})
	var readers, writers sync.WaitGroup
	readers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				check()
			}
		}
	})
	for i := range 8 {
		writers.Go(func() {
			for range 10 {
				if _, err := s.Put("f", bytes.NewReader(bytes.Repeat([]byte{byte('a' + i)}, size)), PutOptions{Mode: 0o644}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	check()
	noTemps(t, dir)
}

func TestOnlyOneOfConcurrentCreationsWins(t *testing.T) {
	s, _ := store(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for range 16 {
		wg.Go(func() {
			_, err := s.Put("f", strings.NewReader("x"), PutOptions{Mode: 0o644, NoReplace: true})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !errors.Is(err, fs.ErrExist) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d won", won)
	}
}

func TestSpecialFilesAreRefusedWithoutWaiting(t *testing.T) {
	s, dir := store(t)
	if err := unix.Mkfifo(dir+"/fifo", 0o644); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: dir + "/socket"}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"fifo", "socket"} {
		if _, err := read(t, s, name); !errors.Is(err, ErrNotRegular) {
			t.Errorf("%s: %v", name, err)
		}
		for _, below := range []string{name, name + "/sub"} {
			if _, err := s.Put(below+"/f", strings.NewReader("x"), PutOptions{Mode: 0o644}); !errors.Is(err, unix.ENOTDIR) {
				t.Errorf("write below %s: %v", below, err)
			}
		}
	}
}

func TestRemove(t *testing.T) {
	s, dir := store(t)
	if err := os.MkdirAll(dir+"/a/b", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/a/f", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, recursive := range []bool{false, true} {
		if err := s.Remove(".", recursive); !errors.Is(err, ErrRoot) {
			t.Errorf("the root: %v", err)
		}
		if err := s.Remove("missing", recursive); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("missing: %v", err)
		}
	}
	if err := s.Remove("a", false); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("not empty: %v", err)
	}
	if err := s.Remove("a/f", false); err != nil {
		t.Error(err)
	}
	if err := s.Remove("a", true); err != nil {
		t.Error(err)
	}
	if list, _ := os.ReadDir(dir); len(list) != 0 {
		t.Errorf("left: %v", list)
	}
}

func TestList(t *testing.T) {
	s, dir := store(t)
	for i := range 300 {
		if err := os.WriteFile(fmt.Sprintf("%s/f%03d", dir, i), []byte("abc"), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{os.Mkdir(dir+"/dir", 0o700), os.Symlink("f000", dir+"/link"), os.WriteFile(dir+"/"+TempPrefix+"x", nil, 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	list := func(limit int) ([]Entry, bool) {
		f, _, err := s.Open(".")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		entries, more, err := List(f, limit)
		if err != nil {
			t.Fatal(err)
		}
		return entries, more
	}
	entries, more := list(1000)
	if len(entries) != 302 || more {
		t.Fatalf("%d entries, more %v", len(entries), more)
	}
	if e := entries[0]; e.Name != "dir" || e.Type != "directory" || e.Mode != "0700" {
		t.Errorf("got %+v", e)
	}
	if e := entries[1]; e.Name != "f000" || e.Type != "file" || e.Size != 3 || e.Mode != "0640" {
		t.Errorf("got %+v", e)
	}
	if e := entries[301]; e.Name != "link" || e.Type != "symlink" {
		t.Errorf("got %+v", e)
	}
	if entries, more := list(10); len(entries) != 10 || !more {
		t.Errorf("%d entries, more %v", len(entries), more)
	}
	if entries, more := list(302); len(entries) != 302 || more {
		t.Errorf("%d entries, more %v", len(entries), more)
	}
}
