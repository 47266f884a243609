// Package files reads and writes files below one directory. Paths cannot leave
// it, through "..", symbolic links or a race with somebody who replaces a
// directory by a link: every access goes through os.Root, which resolves one
// component at a time by openat(2).
package files

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Errors, besides those of fs (ErrNotExist, ErrExist, ErrPermission).
var (
	ErrPath       = errors.New("not a path inside the files root")
	ErrEscape     = errors.New("leads out of the files root")
	ErrNotRegular = errors.New("neither a regular file nor a directory")
	ErrIsDir      = errors.New("is a directory")
	ErrNotEmpty   = errors.New("directory is not empty")
	ErrRoot       = errors.New("the files root itself cannot be changed")
)

// TempPrefix starts the names of uploads under way.
const TempPrefix = ".sandbox-api-upload-"

// Store is one directory. Safe for concurrent use.
type Store struct {
	root     *os.Root
	uid, gid int // owner of what is created; -1: this process
}

// Open returns the store of dir. Files it creates belong to uid and gid; -1 for
// this process' own.
func Open(dir string, uid, gid int) (*Store, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &Store{root: root, uid: uid, gid: gid}, nil
}

// Close frees the directory.
func (s *Store) Close() error { return s.root.Close() }

// ParsePath turns the path of a request into a name in the store, "." for its
// root. It is slash-separated, relative (one leading slash is ignored), without
// "..", NUL, or components longer than NAME_MAX. The error wraps ErrPath.
func ParsePath(p string) (string, error) {
	if strings.IndexByte(p, 0) >= 0 {
		return "", fmt.Errorf("%w: it holds a NUL byte", ErrPath)
	}
	if len(p) >= unix.PathMax {
		return "", fmt.Errorf("%w: it is longer than %d bytes", ErrPath, unix.PathMax-1)
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return "", fmt.Errorf(`%w: it holds ".."`, ErrPath)
		}
		if len(part) > 255 {
			return "", fmt.Errorf("%w: a component is longer than 255 bytes", ErrPath)
		}
	}
	name := path.Clean(strings.TrimLeft(p, "/"))
	if !filepath.IsLocal(name) {
		return "", ErrPath
	}
	return name, nil
}

// wrap gives the errors that callers tell apart a name.
func wrap(err error) error {
	var pe *fs.PathError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EISDIR):
		return fmt.Errorf("%w: %w", ErrIsDir, err)
	case errors.Is(err, unix.ENOTEMPTY):
		return fmt.Errorf("%w: %w", ErrNotEmpty, err)
	case errors.As(err, &pe) && pe.Err != nil && pe.Err.Error() == escapes:
		return fmt.Errorf("%w: %w", ErrEscape, err)
	}
	return err
}

// escapes is the text of the error of os.Root for a path that leaves it; the
// package does not export the error itself. TestPathsCannotLeaveTheRootThroughLinks
// fails when it changes.
const escapes = "path escapes from parent"

// Open opens a regular file or a directory for reading. The caller closes it.
func (s *Store) Open(name string) (*os.File, fs.FileInfo, error) {
	// NONBLOCK: a FIFO would wait for a writer.
	f, err := s.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, unix.ENXIO) { // a socket
			err = ErrNotRegular
		}
		return nil, nil, wrap(err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() && !st.IsDir() {
		err = ErrNotRegular
	}
	if err != nil {
		_ = f.Close()
		return nil, nil, err
	}
	return f, st, nil
}

// PutOptions say how Put creates a file.
type PutOptions struct {
	Mode    fs.FileMode // permission bits
	Parents bool        // create missing directories, mode 0755
	// NoReplace: fs.ErrExist when the name exists.
	NoReplace bool
}

// Put writes a file as a whole: readers see the old content or the new one, and a
// failed or interrupted upload changes nothing. A symbolic link of that name is
// replaced, not followed.
func (s *Store) Put(name string, r io.Reader, o PutOptions) (size int64, err error) {
	if name == "." {
		return 0, ErrIsDir
	}
	dir, base := path.Split(name)
	dir = path.Clean(dir)
	if o.Parents {
		if err := s.mkdirs(dir); err != nil {
			return 0, wrap(err)
		}
	}
	// The temporary file and the final name go through the same open directory,
	// wherever its path leads by then. DIRECTORY: opening a FIFO would wait.
	parent, err := s.root.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, wrap(err)
	}
	defer func() { _ = parent.Close() }()
	// Names of one component each: *at calls on them cannot leave the directory.
	at, tmp := int(parent.Fd()), TempPrefix+strings.ToLower(rand.Text())
	fd, err := unix.Openat(at, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return 0, &fs.PathError{Op: "create", Path: name, Err: err}
	}
	keep := false
	defer func() {
		if !keep {
			_ = unix.Unlinkat(at, tmp, 0)
		}
	}()
	if size, err = s.fill(os.NewFile(uintptr(fd), tmp), r, o.Mode); err != nil {
		return size, err
	}
	if o.NoReplace {
		err = unix.Linkat(at, tmp, at, base, 0)
	} else {
		err = unix.Renameat(at, tmp, at, base)
		keep = err == nil
	}
	if err != nil {
		err = wrap(&fs.PathError{Op: "put", Path: name, Err: err})
	}
	return size, err
}

// fill writes the content, mode and owner of a new file and closes it.
func (s *Store) fill(f *os.File, r io.Reader, mode fs.FileMode) (int64, error) {
	size, err := io.Copy(f, r)
	if err == nil {
		err = f.Chmod(mode.Perm())
	}
	if err == nil && s.uid >= 0 {
		err = f.Chown(s.uid, s.gid)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return size, err
}

func (s *Store) mkdirs(dir string) error {
	if dir == "." {
		return nil
	}
	parts := strings.Split(dir, "/")
	for i := range parts {
		name := strings.Join(parts[:i+1], "/")
		switch err := s.root.Mkdir(name, 0o755); {
		case errors.Is(err, fs.ErrExist):
		case err != nil:
			return err
		case s.uid >= 0:
			if err := s.root.Lchown(name, s.uid, s.gid); err != nil {
				return err
			}
		}
	}
	return nil
}

// Mkdir creates a directory and its parents; no error when it exists.
func (s *Store) Mkdir(name string) error {
	if err := s.mkdirs(name); err != nil {
		return wrap(err)
	}
	st, err := s.root.Stat(name)
	if err == nil && !st.IsDir() {
		return fs.ErrExist
	}
	return wrap(err)
}

// Remove deletes a file, a link (not what it points to) or an empty directory,
// or a whole tree.
func (s *Store) Remove(name string, recursive bool) error {
	if name == "." {
		return ErrRoot
	}
	if recursive {
		// RemoveAll is silent about a name that does not exist.
		if _, err := s.root.Lstat(name); err != nil {
			return wrap(err)
		}
		return wrap(s.root.RemoveAll(name))
	}
	return wrap(s.root.Remove(name))
}

// Entry is one name of a directory.
type Entry struct {
	Name    string    `json:"name"`
	Type    string    `json:"type"` // file, directory, symlink, other
	Size    int64     `json:"size"`
	Mode    string    `json:"mode"` // octal permission bits
	ModTime time.Time `json:"mtime"`
}

// List reads at most limit names of an open directory, sorted. more is true when
// there are others. Uploads under way are left out.
func List(dir *os.File, limit int) (entries []Entry, more bool, err error) {
	for len(entries) <= limit {
		batch, err := dir.ReadDir(256)
		for _, d := range batch {
			if strings.HasPrefix(d.Name(), TempPrefix) {
				continue
			}
			st, err := d.Info()
			if err != nil {
				continue // removed in the meantime
			}
			entries = append(entries, Entry{
				Name: d.Name(), Type: typeName(st.Mode()), Size: st.Size(),
				Mode: fmt.Sprintf("%04o", st.Mode().Perm()), ModTime: st.ModTime().UTC(),
			})
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, false, err
		}
	}
	sort.Slice(entries, func(i, j int) bool { return entries[i].Name < entries[j].Name })
	if len(entries) > limit {
		entries, more = entries[:limit], true
	}
	return entries, more, nil
}

func typeName(m fs.FileMode) string {
	switch {
	case m.IsRegular():
		return "file"
	case m.IsDir():
		return "directory"
	case m&fs.ModeSymlink != 0:
		return "symlink"
	}
	return "other"
}
