package process

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandbox-egress/sandbox-egress/internal/process/files"
)

const (
	defaultListLimit = 1000
	maxListLimit     = 10_000
	// A transfer may last as long as it moves: each read or write has this long.
	transferPatience = 60 * time.Second
)

type dirView struct {
	Path      string        `json:"path"`
	Entries   []files.Entry `json:"entries"`
	Truncated bool          `json:"truncated"`
}

type putView struct {
	Path string `json:"path"`
	Size int64  `json:"size"`
	ETag string `json:"etag,omitempty"`
}

// withFile parses the path and bounds concurrent transfers.
func (s *Server) withFile(h func(http.ResponseWriter, *http.Request, string)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if s.files == nil {
			writeError(w, http.StatusNotFound, apiError{Code: "files_disabled", Message: "the files API is off: --files-root is empty"})
			return
		}
		name, err := files.ParsePath(r.PathValue("path"))
		if err != nil {
			failFile(w, err)
			return
		}
		if !s.transfers.enter(w) {
			return
		}
		defer s.transfers.leave()
		h(w, r, name)
	}
}

// getFile sends a file (with ranges) or lists a directory.
func (s *Server) getFile(w http.ResponseWriter, r *http.Request, name string) {
	f, st, err := s.files.Open(name)
	if err != nil {
		failFile(w, err)
		return
	}
	defer func() { _ = f.Close() }()
	if st.IsDir() {
		s.listDir(w, r, name, f)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("ETag", etag(st))
	h.Set("X-File-Mode", fmt.Sprintf("%04o", st.Mode().Perm()))
	http.ServeContent(&patientWriter{w, http.NewResponseController(w)}, r, "", st.ModTime(), f)
}

// patientWriter gives every write its own deadline.
type patientWriter struct {
	http.ResponseWriter
	control *http.ResponseController
}

func (w *patientWriter) Write(b []byte) (int, error) {
	if err := w.control.SetWriteDeadline(time.Now().Add(transferPatience)); err != nil {
		return 0, err
	}
	return w.ResponseWriter.Write(b)
}

// etag changes with the content as far as the file system tells.
func etag(st fs.FileInfo) string {
	var inode uint64
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		inode = sys.Ino
	}
	return fmt.Sprintf(`"%x-%x-%x"`, inode, st.ModTime().UnixNano(), st.Size())
}

func (s *Server) listDir(w http.ResponseWriter, r *http.Request, name string, dir *os.File) {
	n, err := positionParam(r, "limit")
	if err == nil && n > maxListLimit {
		err = fieldErrorf("limit", "%d is more than %d", n, maxListLimit)
	}
	if err != nil {
		fail(w, err)
		return
	}
	if n == 0 {
		n = defaultListLimit
	}
	entries, more, err := files.List(dir, int(n))
	if err != nil {
		failFile(w, err)
		return
	}
	if entries == nil {
		entries = []files.Entry{}
	}
	s.writePatiently(w)
	writeJSON(w, http.StatusOK, dirView{Path: path.Join("/", name), Entries: entries, Truncated: more})
}

func (s *Server) putFile(w http.ResponseWriter, r *http.Request, name string) {
	o, mkdir, err := putOptions(r)
	if err == nil {
		err = body(w, r, s.cfg.MaxFile, transferPatience)
	}
	if err != nil {
		fail(w, err)
		return
	}
	if mkdir {
		if err := s.files.Mkdir(name); err != nil {
			failFile(w, err)
			return
		}
		writeJSON(w, http.StatusCreated, putView{Path: path.Join("/", name)})
		return
	}
	size, err := s.files.Put(name, &patientReader{r.Body, http.NewResponseController(w)}, o)
	if err != nil {
		failFile(w, err)
		return
	}
	v := putView{Path: path.Join("/", name), Size: size}
	if f, st, err := s.files.Open(name); err == nil {
		v.ETag = etag(st)
		_ = f.Close()
	}
	writeJSON(w, http.StatusCreated, v)
}

func putOptions(r *http.Request) (o files.PutOptions, mkdir bool, err error) {
	o.Mode = 0o644
	if v := r.URL.Query().Get("mode"); v != "" {
		n, err := strconv.ParseUint(v, 8, 32)
		if err != nil || n > 0o777 {
			return o, false, fieldErrorf("mode", "%.20q is not an octal mode, 0000 to 0777", v)
		}
		o.Mode = fs.FileMode(n)
	}
	switch v := r.Header.Get("If-None-Match"); v {
	case "":
	case "*":
		o.NoReplace = true
	default:
		return o, false, fieldErrorf("If-None-Match", "only * works for an upload")
	}
	if o.Parents, err = boolParam(r, "parents"); err != nil {
		return o, false, err
	}
	mkdir, err = boolParam(r, "directory")
	return o, mkdir, err
}

// patientReader gives every read its own deadline.
type patientReader struct {
	r       io.Reader
	control *http.ResponseController
}

func (p *patientReader) Read(b []byte) (int, error) {
	if err := p.control.SetReadDeadline(time.Now().Add(transferPatience)); err != nil {
		return 0, err
	}
	return p.r.Read(b)
}

func (s *Server) deleteFile(w http.ResponseWriter, r *http.Request, name string) {
	recursive, err := boolParam(r, "recursive")
	if err != nil {
		fail(w, err)
		return
	}
	if err := s.files.Remove(name, recursive); err != nil {
		failFile(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// failFile maps an error of the store to its answer.
func failFile(w http.ResponseWriter, err error) {
	answer := func(status int, code string) {
		writeError(w, status, apiError{Code: code, Message: err.Error(), Field: "path"})
	}
	switch {
	case errors.Is(err, files.ErrPath):
		answer(http.StatusBadRequest, "invalid_path")
	case errors.Is(err, files.ErrEscape):
		answer(http.StatusForbidden, "path_escapes")
	case errors.Is(err, files.ErrRoot), errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		answer(http.StatusForbidden, "forbidden")
	case errors.Is(err, files.ErrNotRegular), errors.Is(err, files.ErrIsDir), errors.Is(err, files.ErrNotEmpty), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		answer(http.StatusConflict, "wrong_type")
	case errors.Is(err, fs.ErrExist):
		answer(http.StatusPreconditionFailed, "exists")
	case errors.Is(err, fs.ErrNotExist):
		answer(http.StatusNotFound, "file_not_found")
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		answer(http.StatusInsufficientStorage, "no_space")
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, io.ErrUnexpectedEOF):
		writeError(w, http.StatusBadRequest, apiError{Code: "incomplete_body", Message: "the upload ended early; nothing was changed"})
	default:
		fail(w, err)
	}
}
