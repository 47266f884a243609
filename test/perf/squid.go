package main

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/sandbox-egress/sandbox-egress/test/clients/lab"
)

// squidUser is the user that Debian's package makes for it.
const squidUser = "proxy"

// squidConfig is a plain allowlist proxy: the domain and port rules of Debian's default
// configuration, no cache, no authentication, and the fastest access log that it has: one
// process, buffered.
func squidConfig(dir string) string {
	return fmt.Sprintf(`http_port %[2]s:%[3]d
acl SSL_ports port 443
acl Safe_ports port 80 443
acl allowed dstdomain %[4]s
http_access deny !Safe_ports
http_access deny CONNECT !SSL_ports
http_access allow allowed
http_access deny all
cache deny all
cache_mem 8 MB
access_log stdio:%[1]s/access.log squid
buffered_logs on
logfile_rotate 0
cache_log %[1]s/cache.log
cache_store_log none
pid_filename %[1]s/squid.pid
coredump_dir %[1]s
cache_effective_user %[5]s
dns_nameservers %[6]s
max_filedescriptors %[7]d
pinger_enable off
shutdown_lifetime 0 seconds
visible_hostname squid.example
`, dir, proxyIP, squidPort, originHost, squidUser, dnsIP, openFiles)
}

func (b *bench) startSquid(ctx context.Context, run int, o lab.Options) (*lab.Process, error) {
	dir := filepath.Join(b.scratch, "squid")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	u, err := user.Lookup(squidUser)
	if err != nil {
		return nil, err
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return nil, err
	}
	if err := os.Chown(dir, uid, -1); err != nil {
		return nil, err
	}
	file := filepath.Join(b.scratch, "squid.conf")
	if err := os.WriteFile(file, []byte(squidConfig(dir)), 0o644); err != nil {
		return nil, err
	}
	// -N: no daemon and no second worker; one process, as it gets one processor.
	return b.middle.Start(ctx, fmt.Sprintf("squid-%d", run), b.scratch, o, "squid", "-N", "-f", file)
}
