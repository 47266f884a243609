package internet

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"strconv"
	"time"

	"github.com/coder/websocket"
)

// maxBytes bounds /bytes/{n}.
const maxBytes = 1 << 30

// Handler returns the site that every host serves:
//
//	/bytes/{n}      n bytes
//	/headers        the request as JSON: method, host, uri, header, client, server
//	/echo           the request's body
//	/status/{code}  an empty answer with that status
//	/redirect?to=U  302 to U
//	/slow?delay=D   the answer begins after D (Go duration)
//	/stream?lines=N&interval=D  N lines ("0 <time>", ...), one each D; N=0: until the client leaves
//	/ws             WebSocket echo
//	/git/demo.git   a small repository over smart HTTP; pushes are accepted
//	anything else   200 and one line that names method, host and path
func Handler(log *Log, gitBackend, gitRoot string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/bytes/{n}", serveBytes)
	mux.HandleFunc("/headers", serveHeaders)
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	mux.HandleFunc("/status/{code}", serveStatus)
	mux.HandleFunc("/redirect", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, r.URL.Query().Get("to"), http.StatusFound)
	})
	mux.HandleFunc("/slow", serveSlow)
	mux.HandleFunc("/stream", serveStream)
	mux.HandleFunc("/ws", serveWebSocket)
	mux.Handle("/git/", &cgi.Handler{
		Path: gitBackend,
		Root: "/git",
		Env:  []string{"GIT_PROJECT_ROOT=" + gitRoot, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=sandbox"},
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "sandbox-egress test origin: %s %s %s\n", r.Method, r.Host, r.URL.Path)
	})
	return logged(log, mux)
}

func logged(log *Log, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e := Event{
			Kind: KindHTTP, Server: localAddr(r), Client: r.RemoteAddr,
			Method: r.Method, Host: r.Host, URI: r.RequestURI, Header: r.Header,
		}
		if r.TLS != nil {
			e.TLS, e.SNI = true, r.TLS.ServerName
		}
		if err := log.Add(e); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func localAddr(r *http.Request) string {
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		return a.String()
	}
	return ""
}

func serveBytes(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.ParseInt(r.PathValue("n"), 10, 64)
	if err != nil || n < 0 || n > maxBytes {
		http.Error(w, fmt.Sprintf("/bytes/{n}: n must be 0..%d", maxBytes), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	_, _ = io.CopyN(w, zeros{}, n)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func serveHeaders(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"method": r.Method, "host": r.Host, "uri": r.RequestURI, "header": r.Header,
		"client": r.RemoteAddr, "server": localAddr(r),
	})
}

func serveStatus(w http.ResponseWriter, r *http.Request) {
	code, err := strconv.Atoi(r.PathValue("code"))
	if err != nil || code < 200 || code > 599 {
		http.Error(w, "/status/{code}: code must be 200..599", http.StatusBadRequest)
		return
	}
	w.WriteHeader(code)
}

func serveSlow(w http.ResponseWriter, r *http.Request) {
	delay, err := time.ParseDuration(r.URL.Query().Get("delay"))
	if err != nil {
		http.Error(w, "/slow: "+err.Error(), http.StatusBadRequest)
		return
	}
	select {
	case <-r.Context().Done():
	case <-time.After(delay):
		fmt.Fprintln(w, "after", delay)
	}
}

func serveStream(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	lines, interval := 0, time.Second
	var err error
	if s := query.Get("lines"); s != "" {
		lines, err = strconv.Atoi(s)
	}
	if s := query.Get("interval"); s != "" && err == nil {
		interval, err = time.ParseDuration(s)
	}
	if err != nil || lines < 0 || interval <= 0 {
		http.Error(w, "/stream?lines=N&interval=D: N at least 0, D a positive duration", http.StatusBadRequest)
		return
	}
	control := http.NewResponseController(w)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for i := 0; lines == 0 || i < lines; i++ {
		if _, err := fmt.Fprintln(w, i, time.Now().Format(time.RFC3339Nano)); err != nil {
			return
		}
		if err := control.Flush(); err != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
	}
}

func serveWebSocket(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return // Accept has answered
	}
	defer func() { _ = conn.CloseNow() }()
	for {
		kind, message, err := conn.Read(r.Context())
		if err != nil {
			return
		}
		if err := conn.Write(r.Context(), kind, message); err != nil {
			return
		}
	}
}
