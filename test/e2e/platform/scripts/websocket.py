"""Sends a message over a WebSocket (RFC 6455) through the proxy of $HTTP_PROXY and prints
what came back. Usage: websocket.py connect|forward HOST PORT PATH MESSAGE, where connect
tunnels and forward asks the proxy in absolute-form.
"""
import base64
import os
import socket
import struct
import sys
import urllib.parse

mode, host, port, path, message = sys.argv[1:]
proxy = urllib.parse.urlsplit(os.environ["HTTP_PROXY"])
credential = ""
if proxy.username:
    plain = "%s:%s" % (urllib.parse.unquote(proxy.username), urllib.parse.unquote(proxy.password))
    credential = "Proxy-Authorization: Basic %s\r\n" % base64.b64encode(plain.encode()).decode()

s = socket.create_connection((proxy.hostname, proxy.port), 10)
stream = s.makefile("rb")


def ask(head, want):
    s.sendall((head + "\r\n").encode())
    status = stream.readline().decode().rstrip()
    while stream.readline().strip():
        pass
    if status.split(" ")[1] != want:
        sys.exit(status)


target = path
if mode == "connect":
    ask("CONNECT %s:%s HTTP/1.1\r\nHost: %s:%s\r\n%s" % (host, port, host, port, credential), "200")
    credential = ""
else:
    target = "http://%s:%s%s" % (host, port, path)
key = base64.b64encode(os.urandom(16)).decode()
ask(
    "GET %s HTTP/1.1\r\nHost: %s:%s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n%s" % (target, host, port, key, credential),
    "101",
)
payload, mask = message.encode(), os.urandom(4)
s.sendall(struct.pack(">BB", 0x81, 0x80 | len(payload)) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(payload)))
head = stream.read(2)
print(stream.read(head[1] & 0x7F).decode())
