"""Forks a process that puts, forks, deletes and evicts for as long as it lives, for every line that is read.

Run as `python writer.py FOLDER BUDGET`. For each line, a seed, it prints `pid N`, then `kept ID` after every put
that has returned, then `dead` when the process has died.
"""

import os
import random
import sys
from typing import NoReturn

from ostinato.engine.store.blobs import open_blobs
from ostinato.engine.store.state_store import StateStore, Tier


def write_until_killed(folder: str, budget: int, seed: int) -> NoReturn:
    chance = random.Random(seed)
    store = StateStore([Tier(open_blobs(folder), budget)], compression=chance.choice([None, "zstd"]))
    ids: list[str] = []
    while True:
        content = chance.randbytes(chance.randrange(1, budget // 8))
        record = store.put(content, owner="", parent=ids[-1] if ids else None, tokens=1, model="m")
        say(f"kept {record.id}")
        ids.append(record.id)
        if chance.random() < 0.2:
            store.fork("", record.id, 2)
        if chance.random() < 0.2 and len(ids) > 3:
            old = ids.pop(chance.randrange(len(ids) - 2))
            if old in {record.id for record in store.page("", limit=1000)}:
                store.delete("", old)


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def main(folder: str, budget: int) -> None:
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            write_until_killed(folder, budget, int(line))
        say(f"pid {pid}")
        os.waitpid(pid, 0)
        say("dead")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
