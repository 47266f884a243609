import sys

import httpx

r = httpx.get(sys.argv[1])
r.raise_for_status()
print(r.text)
