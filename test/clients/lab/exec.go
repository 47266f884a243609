package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// enterCommand is the first argument of this program when it is to enter a namespace and
// become another program.
const enterCommand = "lab-enter"

// Options of a program in a namespace.
type Options struct {
	Dir string
	// Env is the whole environment.
	Env []string
	// CPU pins the program to one processor; negative leaves it alone.
	CPU int
	// Files is the limit of open files (RLIMIT_NOFILE); 0 leaves it alone.
	Files uint64
	// Nice is the scheduling priority, -20 to 19.
	Nice int
}

// Command prepares a program that runs in the namespace with its bind mounts. It gets a
// session of its own, which the end of ctx kills.
func (n *Namespace) Command(ctx context.Context, o Options, argv ...string) *exec.Cmd {
	args := []string{enterCommand, n.path(), strconv.Itoa(o.CPU), strconv.FormatUint(o.Files, 10), strconv.Itoa(o.Nice)}
	for _, target := range slices.Sorted(maps.Keys(n.binds)) {
		args = append(args, n.binds[target]+":"+target)
	}
	args = append(args, "--")
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append(args, argv...)...)
	cmd.Dir, cmd.Env = o.Dir, o.Env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return KillGroup(cmd) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// KillGroup kills the program and what it started.
func KillGroup(cmd *exec.Cmd) error {
	if cmd.Process == nil {
		return nil
	}
	if err := unix.Kill(-cmd.Process.Pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// EnterIfAsked must be called first in main: it turns the process into the program that
// Command prepared, if it was started for that.
func EnterIfAsked() {
	if len(os.Args) < 2 || os.Args[1] != enterCommand {
		return
	}
	err := become(os.Args[2:])
	fmt.Fprintln(os.Stderr, enterCommand+":", err)
	os.Exit(125)
}

func become(args []string) error {
	end := slices.Index(args, "--")
	if end < 4 || end+1 >= len(args) {
		return errors.New("want NAMESPACE CPU FILES NICE [SOURCE:TARGET...] -- PROGRAM [ARGUMENT...]")
	}
	cpu, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	files, err := strconv.ParseUint(args[2], 10, 64)
	if err != nil {
		return err
	}
	nice, err := strconv.Atoi(args[3])
	if err != nil {
		return err
	}
	argv := args[end+1:]
	program, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	// The thread that calls execve is the one that survives it, namespaces included.
	runtime.LockOSThread()
	if err := enter(args[0]); err != nil {
		return err
	}
	if err := mountAll(args[4:end]); err != nil {
		return err
	}
	if cpu >= 0 {
		if err := Pin(cpu); err != nil {
			return err
		}
	}
	if nice != 0 {
		if err := prioritise(nice); err != nil {
			return err
		}
	}
	if files > 0 {
		if err := syscall.Setrlimit(unix.RLIMIT_NOFILE, &syscall.Rlimit{Cur: files, Max: files}); err != nil {
			return fmt.Errorf("at least %d open files are needed (ulimit -Hn): %w", files, err)
		}
	}
	return syscall.Exec(program, argv, os.Environ())
}

// prioritise sets the priority within the session and, where the kernel divides the
// processor among sessions first, that of the session: sched(7), autogroup.
func prioritise(nice int) error {
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, nice); err != nil {
		return fmt.Errorf("priority %d: %w", nice, err)
	}
	err := os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(nice)), 0o644)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("priority %d of the session: %w", nice, err)
	}
	return nil
}

func mountAll(binds []string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare(CLONE_NEWNS): %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	for _, b := range binds {
		source, target, _ := strings.Cut(b, ":")
		if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s on %s: %w", source, target, err)
		}
	}
	return nil
}

// Pin binds the calling thread, and what it starts, to one processor.
func Pin(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("pinning to processor %d: %w", cpu, err)
	}
	return nil
}
