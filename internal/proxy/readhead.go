package proxy

import "errors"

// readHead reads one message head of at most limit bytes and leaves what follows it in s.
// The error is a *refusal when what came is not a head, else what the connection returned.
// One empty line before the head is skipped (RFC 9112 section 2.2).
func readHead(s *stream, limit int, fields []field) (head, error) {
	scanned, skipped := 0, false
	for {
		b := s.buffered()
		if !skipped && len(b) >= 2 && b[0] == '\r' && b[1] == '\n' {
			s.discard(2)
			scanned, skipped = 0, true
			continue
		}
		end, next, refused := headEnd(b, scanned)
		if refused != nil {
			return head{}, refused
		}
		if end > 0 {
			h, refused := parseHead(b[:end], fields)
			if refused != nil {
				return head{}, refused
			}
			s.discard(end)
			return h, nil
		}
		scanned = next
		if err := s.more(limit); err != nil {
			if errors.Is(err, errNoRoom) {
				return head{}, malformed(ReasonHeaderTooLarge, "the message head is larger than 64 KiB")
			}
			return head{}, err
		}
	}
}
