package relay

import (
	"fmt"
	"net"
	"time"
)

// failure is an answer of the relay itself. Its phrase repeats the reason, since clients
// show neither headers nor body of a refused CONNECT.
type failure struct {
	status int
	reason string
	text   string
}

func (f failure) writeTo(c net.Conn) error {
	body := f.text + "\n"
	c.SetWriteDeadline(time.Now().Add(answerTimeout))
	_, err := fmt.Fprintf(c, "HTTP/1.1 %d Egress-Relay %s\r\nX-Egress-Relay-Error: %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		f.status, f.reason, f.reason, len(body), body)
	return err
}
