package platform

import (
	"net"
	"time"

	"github.com/sandbox-egress/sandbox-egress/test/cluster/internet"
)

// Reached returns what arrived at the address of the test internet since then, one line
// each, for assertions that nothing did.
func (p *Platform) Reached(address string, since time.Time) ([]internet.Event, error) {
	return p.internetEvents(since, func(e internet.Event) bool { return host(e.Server) == address })
}

// CameFrom returns what arrived anywhere at the test internet from the address since then.
func (p *Platform) CameFrom(address string, since time.Time) ([]internet.Event, error) {
	return p.internetEvents(since, func(e internet.Event) bool { return host(e.Client) == address })
}

func (p *Platform) internetEvents(since time.Time, match func(internet.Event) bool) ([]internet.Event, error) {
	all, err := p.Cluster.Internet().Events(since)
	if err != nil {
		return nil, err
	}
	var events []internet.Event
	for _, e := range all {
		if match(e) {
			events = append(events, e)
		}
	}
	return events, nil
}

func host(address string) string {
	h, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return h
}
