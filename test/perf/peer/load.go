package peer

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Mode is what the clients do.
type Mode string

const (
	// Tunnels opens a tunnel, gets the origin's first flight, closes; again and again.
	Tunnels Mode = "tunnels"
	// Plain sends keep-alive GET requests.
	Plain Mode = "plain"
	// Streams holds one tunnel per client, through which bytes arrive without end.
	Streams Mode = "streams"
	// Idle opens tunnels and holds them.
	Idle Mode = "idle"
)

// Load is one measurement.
type Load struct {
	Mode    Mode
	Clients int
	// Proxy is where to connect; without it the origin is asked directly.
	Proxy netip.AddrPort
	// Credentials is the value of Proxy-Authorization; "" sends none.
	Credentials string
	// Host is the origin's name, Direct its addresses when there is no proxy.
	Host                       string
	DirectTunnels, DirectPlain netip.AddrPort
	// WarmUp is not counted.
	WarmUp, Duration time.Duration
	// Watch is the process whose processor time is taken; 0 for none.
	Watch int
}

// Outcome is what was measured. Times are in seconds.
type Outcome struct {
	Operations, Bytes int64
	Errors            int64
	Wall              float64
	// CPU is the processor time of the watched process, System the kernel's part of it, and
	// LoadCPU the processor time of the load generator.
	CPU, System, LoadCPU float64
	P50, P99             float64
	// FirstError tells what went wrong first.
	FirstError string
}

type stage uint8

const (
	connecting stage = iota
	awaitEstablished
	awaitFlight
	receiving
	awaitResponse
	resting
)

type client struct {
	fd    int
	stage stage
	got   int    // bytes of the flight or response
	head  []byte // of the proxy's answer
	start time.Time
}

type load struct {
	Load
	poll      *poller
	conns     table[client]
	buf       []byte
	connect   []byte
	hello     []byte
	request   []byte
	latencies []time.Duration
	counting  bool
	out       Outcome
	idle      int
}

// maxErrors ends a measurement that is none.
const maxErrors = 100

func newLoad(l Load) (*load, error) {
	g := &load{Load: l, buf: make([]byte, 1<<20), latencies: make([]time.Duration, 0, 1<<20)}
	var err error
	if g.poll, err = newPoller(); err != nil {
		return nil, err
	}
	if g.hello, err = clientHello(l.Host); err != nil {
		return nil, err
	}
	credentials := ""
	if l.Credentials != "" {
		credentials = "Proxy-Authorization: " + l.Credentials + "\r\n"
	}
	g.connect = []byte("CONNECT " + l.Host + ":443 HTTP/1.1\r\nHost: " + l.Host + ":443\r\nUser-Agent: bench\r\n" + credentials + "\r\n")
	target := "/"
	if l.Proxy.IsValid() {
		target = "http://" + l.Host + "/"
	}
	g.request = []byte("GET " + target + " HTTP/1.1\r\nHost: " + l.Host + "\r\nUser-Agent: bench\r\nAccept: */*\r\n" + credentials + "\r\n")
	return g, nil
}

// Run measures for WarmUp and Duration.
func (l Load) Run() (Outcome, error) {
	g, err := newLoad(l)
	if err != nil {
		return Outcome{}, err
	}
	for range l.Clients {
		if err := g.open(); err != nil {
			return g.out, err
		}
	}
	begin := time.Now()
	if err := g.loop(begin.Add(l.WarmUp), nil); err != nil {
		return g.out, err
	}
	g.counting = true
	begin = time.Now()
	cpu, system, own := processTime(l.Watch), systemTime(l.Watch), processTime(0)
	if err := g.loop(begin.Add(l.Duration), nil); err != nil {
		return g.out, err
	}
	g.out.Wall = time.Since(begin).Seconds()
	g.out.CPU, g.out.LoadCPU = (processTime(l.Watch) - cpu).Seconds(), (processTime(0) - own).Seconds()
	g.out.System = (systemTime(l.Watch) - system).Seconds()
	if l.Watch == 0 {
		g.out.CPU = 0
	}
	slices.Sort(g.latencies)
	g.out.P50, g.out.P99 = percentile(g.latencies, 50), percentile(g.latencies, 99)
	return g.out, nil
}

// Hold opens the tunnels, at most 64 at a time, calls held when all are there, and returns
// when release is closed.
func (l Load) Hold(limit time.Duration, held func(), release <-chan struct{}) error {
	g, err := newLoad(l)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(limit)
	for opened := 0; opened < l.Clients; {
		for opened < l.Clients && opened-g.idle < 64 {
			if err := g.open(); err != nil {
				return err
			}
			opened++
		}
		want := max(g.idle+1, opened-63)
		if err := g.loop(deadline, func() bool { return g.idle >= want }); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			break
		}
	}
	if err := g.loop(deadline, func() bool { return g.idle == l.Clients }); err != nil {
		return err
	}
	if g.idle != l.Clients {
		return fmt.Errorf("%d of %d tunnels were open after %s: %s", g.idle, l.Clients, limit, g.out.FirstError)
	}
	held()
	<-release
	return nil
}

func percentile(sorted []time.Duration, p int) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, len(sorted)*p/100)].Seconds()
}

// processTime is the processor time of a process, all threads; 0 is this one.
func processTime(pid int) time.Duration {
	clock := int32(unix.CLOCK_PROCESS_CPUTIME_ID)
	if pid > 0 {
		// The clock of another process, as clock_getcpuclockid(3) makes it.
		clock = int32(^pid)<<3 | 2
	}
	var ts unix.Timespec
	if unix.ClockGettime(clock, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// tick is the unit of times in proc_pid_stat(5): USER_HZ is 100 on every architecture that
// Go supports.
const tick = 10 * time.Millisecond

// systemTime is the part of a process's processor time that was spent in the kernel; pid 0
// has none.
func systemTime(pid int) time.Duration {
	if pid == 0 {
		return 0
	}
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	// The name in parentheses may hold spaces; stime is the 13th field after it.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	ticks, err := strconv.ParseInt(fields[12], 10, 64)
	if err != nil {
		return 0
	}
	return time.Duration(ticks) * tick
}

func (g *load) loop(until time.Time, enough func() bool) error {
	for {
		left := time.Until(until)
		if left <= 0 || enough != nil && enough() {
			return nil
		}
		events, err := g.poll.wait(int(left.Milliseconds()) + 1)
		if err != nil {
			return err
		}
		for _, e := range events {
			c := g.conns.get(int(e.Fd))
			if c == nil {
				continue
			}
			if err := g.step(c); err != nil {
				if err := g.failed(c, err); err != nil {
					return err
				}
			}
		}
	}
}

func (g *load) failed(c *client, err error) error {
	g.out.Errors++
	if g.out.FirstError == "" {
		g.out.FirstError = err.Error()
	}
	if g.out.Errors > maxErrors {
		return fmt.Errorf("more than %d errors, the first: %s", maxErrors, g.out.FirstError)
	}
	g.close(c)
	return g.open()
}

func (g *load) close(c *client) {
	g.conns.set(c.fd, nil)
	_ = unix.Close(c.fd)
}

func (g *load) open() error {
	fd, err := newSocket()
	if err != nil {
		return err
	}
	c := &client{fd: fd, start: time.Now()}
	g.conns.set(fd, c)
	to := g.Proxy
	switch {
	case to.IsValid():
	case g.Mode == Plain:
		to = g.DirectPlain
	default:
		to = g.DirectTunnels
	}
	if err := unix.Connect(fd, sockaddr(to)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return fmt.Errorf("connect %s: %w", to, err)
	}
	return g.poll.add(fd, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLET)
}

var errClosed = errors.New("the other end closed the connection")

// step does what the connection is ready for.
func (g *load) step(c *client) error {
	for {
		if c.stage == connecting {
			if err := g.connected(c); err != nil {
				return err
			}
		}
		flags := 0
		if c.stage == receiving {
			flags = unix.MSG_TRUNC // counted and dropped by the kernel, tcp(7)
		}
		n, _, err := unix.Recvfrom(c.fd, g.buf, flags)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil:
			return fmt.Errorf("receive: %w", err)
		case n == 0:
			return errClosed
		}
		over, err := g.received(c, g.buf[:n])
		if err != nil || over {
			return err
		}
	}
}

func (g *load) connected(c *client) error {
	code, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && code != 0 {
		err = unix.Errno(code)
	}
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	switch {
	case g.Mode == Plain:
		return g.ask(c)
	case g.Proxy.IsValid():
		c.stage = awaitEstablished
		return write(c.fd, g.connect)
	}
	return g.greet(c)
}

func write(fd int, b []byte) error {
	if !send(fd, b) {
		return errors.New("a message did not fit into the socket buffer")
	}
	return nil
}

func (g *load) ask(c *client) error {
	c.stage, c.got, c.start = awaitResponse, 0, time.Now()
	return write(c.fd, g.request)
}

func (g *load) greet(c *client) error {
	c.stage, c.got = awaitFlight, 0
	return write(c.fd, g.hello)
}

// received takes in bytes; over means that c is no more, or that the loop is to come back
// to it.
func (g *load) received(c *client, in []byte) (over bool, err error) {
	switch c.stage {
	case awaitEstablished:
		return false, g.established(c, in)
	case awaitFlight:
		c.got += len(in)
		if c.got >= flightSize {
			return g.flown(c)
		}
	case receiving:
		if g.counting {
			g.out.Bytes += int64(len(in))
		}
		return true, nil // level-triggered: others come first
	case awaitResponse:
		return false, g.response(c, in)
	}
	return false, nil
}

func (g *load) established(c *client, in []byte) error {
	c.head = append(c.head, in...)
	if !bytes.HasSuffix(c.head, []byte("\r\n\r\n")) {
		return nil
	}
	if !bytes.HasPrefix(c.head, []byte("HTTP/1.1 200")) {
		line, _, _ := bytes.Cut(c.head, []byte("\r\n"))
		return fmt.Errorf("the proxy answered %s", line)
	}
	c.head = c.head[:0]
	return g.greet(c)
}

// flown is the end of a handshake's first round trip.
func (g *load) flown(c *client) (over bool, err error) {
	switch g.Mode {
	case Tunnels:
		g.count(c)
		g.close(c)
		return true, g.open()
	case Streams:
		c.stage = receiving
		if err := write(c.fd, []byte{streamCommand}); err != nil {
			return false, err
		}
		return true, g.poll.change(c.fd, unix.EPOLLIN)
	default:
		c.stage = resting
		g.idle++
	}
	return false, nil
}

func (g *load) count(c *client) {
	if g.counting {
		g.out.Operations++
		g.latencies = append(g.latencies, time.Since(c.start))
	}
}

// response takes part of a response and asks again after a whole one.
func (g *load) response(c *client, in []byte) error {
	if c.got == 0 {
		c.head = append(c.head, in...)
		end := bytes.Index(c.head, []byte("\r\n\r\n"))
		if end < 0 {
			return nil
		}
		if !bytes.HasPrefix(c.head, []byte("HTTP/1.1 200")) {
			line, _, _ := bytes.Cut(c.head, []byte("\r\n"))
			return fmt.Errorf("the proxy answered %s", line)
		}
		c.got = len(c.head) - end - 4 + 1 // one more, so that 0 means no head yet
		c.head = c.head[:0]
	} else {
		c.got += len(in)
	}
	if c.got < bodySize+1 {
		return nil
	}
	g.count(c)
	return g.ask(c)
}
