"""`ostinato chat`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from ostinato.engine.errors import OstinatoError
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.text.chat_template import default_stop
from ostinato.server.cli import options as opt

if TYPE_CHECKING:
    from ostinato.server.cli.terminal import TextModel

HELP = "Ctrl-C stops an answer, /reset forgets the conversation, /quit or Ctrl-D ends it."
PROMPT = "> "


def chat(
    model: opt.Model = opt.DEMO,
    system: Annotated[str | None, typer.Option(help="A system message for the whole conversation.")] = None,
    max_tokens: opt.MaxTokens = 1024,
    temperature: opt.Temperature = 1.0,
    top_p: opt.TopP = 1.0,
    top_k: opt.TopK = 0,
    min_p: opt.MinP = 0.0,
    repetition_penalty: opt.RepetitionPenalty = 1.0,
    seed: opt.Seed = None,
    device: opt.Device = "cpu",
    dtype: opt.DType = "auto",
    tokenizer: opt.TokenizerPath = None,
    threads: opt.Threads = None,
    batch_invariant: opt.BatchInvariant = False,
    cuda_graphs: opt.CUDAGraphs = True,
) -> None:
    """Talk with MODEL. Ctrl-C stops an answer, /reset forgets the conversation, /quit or Ctrl-D ends it."""
    from ostinato.server.cli.terminal import TextModel

    loaded = TextModel(
        model,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        threads=threads,
        batch_invariant=batch_invariant,
        cuda_graphs=cuda_graphs,
    )
    params = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        max_tokens=max_tokens,
        stop=default_stop(loaded.tokenizer.chat_template),
    )
    Conversation(loaded, params, system).run()


class Conversation:
    """Reads lines, answers them, and keeps both. The whole conversation is read anew for every answer."""

    def __init__(self, model: TextModel, params: SamplingParams, system: str | None) -> None:
        self.model = model
        self.params = params
        self.opening = [] if system is None else [{"role": "system", "content": system}]
        self.messages = list(self.opening)

    def run(self) -> None:
        """Until /quit or the end of the input."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # importing it gives input() line editing and a history
        typer.echo(HELP, err=True)
        while (line := _read_line()) not in (None, "/quit"):
            if line == "/reset":
                self.messages = list(self.opening)
                typer.echo("The conversation is forgotten.", err=True)
            elif line and line.startswith("/"):
                typer.echo(HELP, err=True)
            elif line:
                self._turn(line)

    def _turn(self, line: str) -> None:
        """A turn that fails is not kept; of one that was stopped, what came before is."""
        asked = [*self.messages, {"role": "user", "content": line}]
        try:
            prompt = self.model.tokenizer.apply_chat_template(asked, add_generation_prompt=True)
            completion = self.model.answer(self.model.tokenizer.encode(prompt, add_special_tokens=False), self.params)
        except OstinatoError as error:
            from ostinato.server.cli.console import show_error

            show_error(error)
            return
        typer.echo(" [stopped]" if completion.finish_reason is None else "")
        self.messages = [*asked, {"role": "assistant", "content": completion.text}]


def _read_line() -> str | None:
    """None at the end of the input; nothing after Ctrl-C."""
    try:
        return input(PROMPT).strip()
    except EOFError:
        typer.echo()
        return None
    except KeyboardInterrupt:
        typer.echo(f"\n{HELP}", err=True)
        return ""
