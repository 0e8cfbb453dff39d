"""What a second reading costs: tokens and seconds of a prompt read twice, over those of the prompt read once.

    python scripts/bench/repeat_cost.py MODEL [--tokens 256,1024,4096]

Nothing is generated and no state is kept, so this is the cost of reading alone. MODEL needs a tokenizer. Seconds are
the least of several rounds, by the clock and of processor time: what other programs take comes on top of it.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping

from ostinato.engine.config import EngineConfig
from ostinato.engine.loading import load_service
from ostinato.server.cli.options import model_path
from ostinato.server.evals.asking import Server, own_server

SENTENCE = "The river runs slowly past the old mill and down to the sea. "
QUESTION = "Question: Where does the river run?\nAnswer:"
ROUNDS = 9

Fields = Mapping[str, object]
Cost = tuple[int, float, float]


def forms(context: str) -> dict[str, tuple[Fields, Fields]]:
    """The fields that make a prompt to be read once, and twice, by the name of the form."""
    parts = {"context": context, "question": QUESTION}
    once = {"repeat": {**parts, "order": "cq"}}
    whole = {"prompt": f"{context} {QUESTION}\n"}
    orders = {order: (once, {"repeat": {**parts, "order": order}}) for order in ("cqcq", "qccq", "ccq")}
    return {"whole": ({**whole, "repeat": 1}, {**whole, "repeat": 2}), **orders}


async def cost(server: Server, fields: Fields) -> Cost:
    """Tokens that were read, seconds by the clock, seconds of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    answer = await server.ask(fields, 0, cache=False)
    return answer.prompt_tokens - answer.cached_tokens, time.perf_counter() - clock, time.process_time() - processor


async def compare(server: Server, once: Fields, twice: Fields) -> list[float]:
    """Twice over once: tokens, clock, processor. The two take turns, so that both meet the same machine."""
    rounds = [(await cost(server, once), await cost(server, twice)) for _ in range(ROUNDS)]
    return [min(pair[1][i] for pair in rounds) / min(pair[0][i] for pair in rounds) for i in range(3)]


async def measure(model: str, lengths: list[int]) -> None:
    config = EngineConfig(model_path(model), max_batch=1, prefix_cache=0)
    service = load_service(config)
    if service.tokenizer is None:
        raise SystemExit(f"{model} has no tokenizer")
    each = len(service.tokenizer.encode(SENTENCE))
    async with own_server(service, config, "model") as server:
        print(f"{'context':>8} {'form':>6} {'tokens':>8} {'clock':>8} {'processor':>10}")
        for length in lengths:
            for form, (once, twice) in forms(SENTENCE * max(1, length // each)).items():
                tokens, clock, processor = await compare(server, once, twice)
                print(f"{length:>8} {form:>6} {tokens:>7.3f}x {clock:>7.3f}x {processor:>9.3f}x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder, .pth file or hub id; or demo, demo:gla, demo:mamba")
    parser.add_argument("--tokens", default="256,1024,4096", help="of the context, several with commas")
    options = parser.parse_args()
    asyncio.run(measure(options.model, [int(length) for length in options.tokens.split(",")]))


if __name__ == "__main__":
    main()
