"""From a request to the tokens that are to be read, with everything that `repeat` makes of them.

A text is written out first and tokenized as a whole, so a repeated prompt has the very tokens that it would have if
the client had written it out: the tokenizer's special tokens stand around all of it, once. Lists of token ids are
repeated as they are.

The prefix cache keeps the state where the first reading of a context ends, for the next question to begin from. Where
a token reaches over that end, it is kept before that token.
"""

from __future__ import annotations

from collections.abc import Sequence

from ostinato.engine.errors import RequestError
from ostinato.engine.snapshots import Snapshot, TokenLog
from ostinato.server.context import Context
from ostinato.server.conversation import Conversation, shared_length
from ostinato.server.protocol import ChatMessage, CompletionRequest
from ostinato.server.repeat import Form, forms_of, order_of, write_out
from ostinato.server.repeat_protocol import Repeat, RepeatOptions
from ostinato.server.states.job_states import JobStates

Tokens = tuple[int, ...]


async def completion_prompts(context: Context, request: CompletionRequest, states: JobStates) -> list[Tokens]:
    """The new tokens of each prompt. Fills in where the first reading of each ends, if it is read again.

    Raises:
        RequestError: there is no prompt, `repeat` does not fit the request or its state, or the vocabulary cannot
            express a text.
        TextNeedsTokenizerError: there is no tokenizer.
    """
    repeat = request.repeat
    if isinstance(repeat, RepeatOptions):
        return await _formed(context, request, repeat, states)
    if repeat > 1 and request.prompt is None:
        raise RequestError("repeat: there is no prompt to repeat", "repeat")
    once = await context.encode_prompts(request)
    if repeat == 1:
        return once
    given = [request.prompt] if isinstance(request.prompt, str) else request.prompt or []
    texts = [prompt * repeat for prompt in given if isinstance(prompt, str)]
    whole = await _encode(context, request, texts) if texts else [ids * repeat for ids in once]
    states.stops = _stops(once, whole)
    return whole


async def chat_prompt(
    context: Context,
    messages: Sequence[ChatMessage],
    states: JobStates | None = None,
    repeat: Repeat = 1,
    *,
    answers: bool = True,
) -> Tokens:
    """The tokens of a conversation, or of what goes on from a state. Fills in its checkpoints and its first reading.

    answers: up to where the assistant's answer begins. Raises RequestError, TextNeedsTokenizerError.
    """
    tokenizer = context.tokenizer_for("messages")
    start = None if states is None else states.start
    _check_state(repeat, start)
    written, first = write_out(messages, repeat)
    conversation = Conversation(tokenizer, written, None if start is None else start.open_turn)
    text = conversation.text(answers=answers)
    (ids,) = await context.encode([text], "messages", special=False, continues=start is not None)
    if states is not None:
        states.checkpoints = conversation.checkpoints(ids)
        states.stops = [frozenset({conversation.length(first, ids)} - {0} if first else ())]
    return ids


def _check_state(repeat: Repeat, start: Snapshot | None) -> None:
    if isinstance(repeat, RepeatOptions) and repeat.from_state and start is None:
        raise RequestError("repeat.from_state: there is no state to go on from", "repeat.from_state")


def _stops(first: Sequence[Tokens], whole: Sequence[Tokens]) -> list[frozenset[int]]:
    """Where the first readings end within the prompts."""
    lengths = [shared_length(*pair) for pair in zip(first, whole, strict=True)]
    return [frozenset({length} - {0}) for length in lengths]


async def _encode(context: Context, request: CompletionRequest, texts: Sequence[str]) -> list[Tokens]:
    continues = request.state is not None
    return await context.encode(texts, "repeat", special=request.add_special_tokens, continues=continues)


async def _formed(
    context: Context, request: CompletionRequest, options: RepeatOptions, states: JobStates
) -> list[Tokens]:
    if request.prompt is not None:
        raise RequestError("prompt: repeat writes the prompt from its context and question; leave it out", "prompt")
    _check_state(options, states.start)
    forms = forms_of(options)
    if options.from_state and states.start is not None:
        return await _behind_first(context, request, options, forms, states.start.log)
    if options.context is None:
        raise RequestError("repeat.context: Field required, unless from_state is true.", "repeat.context")
    whole = await _encode(context, request, [form.text(options.context) for form in forms])
    first = await _encode(context, request, [form.first_reading(options.context) for form in forms])
    states.stops = _stops(first, whole)
    return whole


async def _behind_first(
    context: Context, request: CompletionRequest, options: RepeatOptions, forms: Sequence[Form], log: TokenLog
) -> list[Tokens]:
    """What follows the state, which is the first reading.

    With the context's text: the rest of the whole prompt, of which the state must be the beginning. Without it the
    state's own tokens are read again, except for the token that begins a text.
    """
    if options.context is not None:
        texts = [form.text(options.context) for form in forms]
        whole = await context.encode(texts, "repeat", special=request.add_special_tokens)
        return [_after(log, ids) for ids in whole]
    if order_of(options).startswith("q"):
        message = "repeat.order: the state has read the context, so the question cannot come first"
        raise RequestError(message, "repeat.order")
    again = _readable(context, log)
    return [await _written_behind(context, form.segments[1:], again) for form in forms]


def _after(log: TokenLog, ids: Tokens) -> Tokens:
    """What follows `log` in `ids`. Raises RequestError: they part before, or nothing follows."""
    if len(ids) > log.length and TokenLog.of(ids[: log.length]).digest == log.digest:
        return ids[log.length :]
    known = log.tokens
    where = "" if known is None else f" (they part after {shared_length(known, ids)} tokens)"
    raise RequestError(
        f"repeat.context: the prompt of {len(ids)} tokens does not begin with the {log.length} tokens "
        f"of the state{where}; leave the context out to read the state's own tokens again",
        "repeat.context",
    )


def _readable(context: Context, log: TokenLog) -> Tokens:
    if log.tokens is None:
        message = "repeat.context: the state was stored without its tokens (private): send the context as text"
        raise RequestError(message, "repeat.context")
    begins = context.tokenizer_for("repeat").bos_token_id
    return log.tokens[1:] if log.tokens[:1] == (begins,) else log.tokens


async def _written_behind(context: Context, segments: Sequence[str], again: Tokens) -> Tokens:
    """The segments as they follow a text, with the context's tokens between them."""
    encoded = await context.encode(segments, "repeat", special=False, continues=True)
    ids = encoded[0]
    for segment in encoded[1:]:
        ids = (*ids, *again, *segment)
    return ids
