// Package relay is the sidecar that gives a sandbox its egress without giving it the
// credential: a loopback listener that adds the rotating token to each request and hands
// it to the egress proxy.
//
// It decides nothing and resolves nothing. It reads one request head per connection,
// replaces Proxy-Authorization, and from there on copies bytes: the proxy's answers, in
// particular its refusals, reach the client byte for byte. Plain HTTP requests are sent
// with "Connection: close", so the relay needs no notion of where a body ends and cannot
// disagree with the proxy about it (request smuggling); tunnels and upgrades have one
// request per connection anyway.
package relay
