import asyncio
import sys

import aiohttp


async def main():
    async with aiohttp.ClientSession(trust_env=True) as session:
        async with session.get(sys.argv[1], raise_for_status=True) as r:
            print(await r.text())


asyncio.run(main())
