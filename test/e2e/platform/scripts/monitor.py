"""Keeps asking, and writes what it got, one JSON line per attempt.

Usage: monitor.py ALLOWED-URL DENIED-URL DIRECT-ADDRESS:PORT, output to stdout.
k: allowed and denied go through the proxy of $HTTP_PROXY, one connection each; direct
connects past it. t: start, d: seconds, s: status, 0 for none (direct: 1 when connected).
k: stall is a time in which this program itself was not run.
"""
import base64
import json
import os
import socket
import sys
import threading
import time
import urllib.parse

CONNECT, READ = 0.5, 1.0
write = threading.Lock()


def note(kind, start, status, error):
    line = json.dumps({"k": kind, "t": start, "d": time.time() - start, "s": status, "e": error})
    with write:
        print(line, flush=True)


def get(url):
    proxy = urllib.parse.urlsplit(os.environ["HTTP_PROXY"])
    head = "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n" % (url, urllib.parse.urlsplit(url).netloc)
    if proxy.username:
        credential = "%s:%s" % (urllib.parse.unquote(proxy.username), urllib.parse.unquote(proxy.password))
        head += "Proxy-Authorization: Basic %s\r\n" % base64.b64encode(credential.encode()).decode()
    with socket.create_connection((proxy.hostname, proxy.port), CONNECT) as s:
        s.settimeout(READ)
        s.sendall((head + "\r\n").encode())
        answer = b""
        while True:
            piece = s.recv(65536)
            if not piece:
                break
            answer += piece
    return int(answer.split(b" ", 2)[1])


def direct(address):
    host, port = address.rsplit(":", 1)
    socket.create_connection((host, int(port)), 1.0).close()
    return 1


def loop(kind, pause, attempt, target):
    while True:
        start = time.time()
        status, error = 0, ""
        try:
            status = attempt(target)
        except (OSError, IndexError, ValueError) as e:
            error = repr(e)
        note(kind, start, status, error)
        time.sleep(pause)


def watch():
    while True:
        start = time.time()
        time.sleep(0.05)
        if time.time() - start > 0.3:
            note("stall", start, 0, "")


threading.Thread(target=watch).start()
for args in (("allowed", 0.1, get, sys.argv[1]), ("denied", 0.25, get, sys.argv[2]), ("direct", 0.25, direct, sys.argv[3])):
    threading.Thread(target=loop, args=args).start()
