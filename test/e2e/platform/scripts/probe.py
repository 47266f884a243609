"""Tries each target past any proxy and prints which answered, as JSON.

Targets: tcp:ADDRESS:PORT, udp:ADDRESS:PORT (an echo server), dns:ADDRESS:NAME,
dnstcp:ADDRESS:NAME (DNS over TCP). Each has 3 s.
"""
import json
import socket
import struct
import sys
import threading

TIMEOUT = 3


def question(name):
    labels = b"".join(bytes([len(l)]) + l.encode() for l in name.split("."))
    return struct.pack(">6H", 4711, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)


def connect(kind, address, port):
    s = socket.socket(socket.AF_INET, kind)
    s.settimeout(TIMEOUT)
    s.connect((address, int(port)))
    return s


def attempt(target):
    kind, address, rest = target.split(":", 2)
    if kind == "tcp":
        connect(socket.SOCK_STREAM, address, rest).close()
    elif kind == "udp":
        s = connect(socket.SOCK_DGRAM, address, rest)
        s.send(b"probe")
        s.recv(100)
    elif kind == "dns":
        s = connect(socket.SOCK_DGRAM, address, 53)
        s.send(question(rest))
        s.recv(600)
    elif kind == "dnstcp":
        s = connect(socket.SOCK_STREAM, address, 53)
        q = question(rest)
        s.sendall(struct.pack(">H", len(q)) + q)
        if not s.recv(600):
            raise ConnectionError("closed without an answer")
    else:
        raise ValueError("unknown kind " + kind)


def run(target):
    try:
        attempt(target)
        results[target] = "open"
    except OSError as e:
        results[target] = "blocked: %s" % e


results = {}
threads = [threading.Thread(target=run, args=(t,)) for t in sys.argv[1:]]
for t in threads:
    t.start()
for t in threads:
    t.join()
json.dump(results, sys.stdout)
