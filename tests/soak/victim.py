"""Some streams at once, read for ever by a process that is there to be killed: `python victim.py HOST PORT SEED`.

Only the standard library: it has to be up fast, since it does not live long.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys

STREAMS = 3


async def read_for_ever(host: str, port: int, draw: random.Random) -> None:
    while True:
        reader, writer = await asyncio.open_connection(host, port)
        tokens = draw.randint(20, 400)
        prompt = "The king " * draw.randint(1, 20)
        body = json.dumps({"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True}).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        )
        writer.write(head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body)
        while await reader.read(4096):
            pass
        writer.close()
        await asyncio.sleep(0.05)


async def main(host: str, port: int, seed: int) -> None:
    await asyncio.gather(*(read_for_ever(host, port, random.Random(f"{seed}-{i}")) for i in range(STREAMS)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
