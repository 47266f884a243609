package egressctl

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// maxInputBytes bounds every file and stdin that is read whole.
const maxInputBytes = 4 << 20

// readInput reads a file, or stdin for "-". The error names the flag.
func (a *App) readInput(flag, name string) ([]byte, error) {
	in := a.In
	if name != "-" {
		file, err := os.Open(filepath.Clean(name))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", flag, err)
		}
		defer file.Close()
		in = file
	}
	data, err := io.ReadAll(io.LimitReader(in, maxInputBytes+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	if len(data) > maxInputBytes {
		return nil, fmt.Errorf("%s: %s is larger than %d bytes", flag, name, maxInputBytes)
	}
	return data, nil
}

// checkNew refuses a path that exists, also as a dangling symbolic link.
func checkNew(flag, name string) error {
	_, err := os.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("%s: %w", flag, err)
	}
	return fmt.Errorf("%s: %s exists; choose another name or overwrite it with --force", flag, name)
}

// writeFile writes data under mode. A new file is made exclusively; replace writes a
// temporary file and renames it, so that a failure leaves the old one whole, and neither
// its mode nor a symbolic link in its place decides where a private key ends up.
func writeFile(flag, name string, data []byte, mode fs.FileMode, replace bool) (err error) {
	if name == "" {
		return fmt.Errorf("%s: the file name is empty", flag)
	}
	var file *os.File
	if replace {
		file, err = os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*") // 0600
	} else {
		file, err = os.OpenFile(filepath.Clean(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	}
	if err != nil {
		if errors.Is(err, fs.ErrExist) {
			return checkNew(flag, name)
		}
		return fmt.Errorf("%s: %w", flag, err)
	}
	defer func() {
		if err != nil {
			os.Remove(file.Name())
			err = fmt.Errorf("%s: %w", flag, err)
		}
	}()
	if err := errors.Join(chmod(file, mode), writeAll(file, data), file.Sync(), file.Close()); err != nil {
		return err
	}
	if replace {
		return os.Rename(file.Name(), name)
	}
	return nil
}

// chmod makes the mode exact whatever the umask is.
func chmod(file *os.File, mode fs.FileMode) error { return file.Chmod(mode) }

func writeAll(file *os.File, data []byte) error {
	_, err := file.Write(data)
	return err
}
