"""From request fields to `SamplingParams`, and the combinations of fields that make no sense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ostinato.engine.errors import RequestError
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.text.chat_template import default_stop
from ostinato.server.context import Context
from ostinato.server.protocol import ChatRequest, CompletionRequest, GenerationRequest, SamplingRequest
from ostinato.server.responses.protocol import ResponseRequest


def completion_params(context: Context, request: CompletionRequest) -> SamplingParams:
    """Raises RequestError: a value or a combination that cannot be served; `field` is the request's own name."""
    _check_stream_options(request)
    ranked = _check_best_of(request)
    if request.echo:
        context.tokenizer_for("echo")
    wanted = [request.prompt_logprobs, request.logprobs if request.echo else None]
    counts = [count for count in wanted if count is not None]
    names = {"prompt_logprobs": "logprobs"} if request.prompt_logprobs is None else {}
    return _params(
        context,
        request,
        max_tokens=_or(request.max_tokens, context.settings.completion_max_tokens),
        logprobs=_or(request.logprobs, 0) if ranked else request.logprobs,
        prompt_logprobs=max(counts, default=None),
        names=names,
    )


def _check_best_of(request: CompletionRequest) -> bool:
    """Whether more choices are generated than returned, so that they have to be ranked."""
    if request.best_of in (None, request.n):
        return False
    if request.best_of < request.n:
        raise RequestError(f"best_of must be at least n ({request.n}), got {request.best_of}", "best_of")
    if request.stream or request.store is not False:
        other = "stream" if request.stream else "store"
        raise RequestError(
            f"best_of picks when all choices are complete: it cannot be combined with {other}", "best_of"
        )
    return True


def chat_params(context: Context, request: ChatRequest) -> SamplingParams:
    """Raises RequestError: a value or a combination that cannot be served; `field` is the request's own name."""
    _check_stream_options(request)
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise RequestError("max_tokens and max_completion_tokens are the same bound: send one", "max_completion_tokens")
    if request.top_logprobs is not None and not request.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", "top_logprobs")
    limit = _or(request.max_completion_tokens, _or(request.max_tokens, context.settings.chat_max_tokens))
    limit_name = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    return _params(
        context,
        request,
        max_tokens=limit,
        logprobs=_or(request.top_logprobs, 0) if request.logprobs else None,
        names={"max_tokens": limit_name, "logprobs": "top_logprobs"},
        more_stop=default_stop(context.tokenizer_for("messages").chat_template),
    )


def response_params(context: Context, request: ResponseRequest) -> SamplingParams:
    """Raises RequestError: a value that cannot be served; `field` is the request's own name."""
    return _params(
        context,
        request,
        max_tokens=_or(request.max_output_tokens, context.settings.chat_max_tokens),
        logprobs=None,
        names={"max_tokens": "max_output_tokens"},
        more_stop=default_stop(context.tokenizer_for("input").chat_template),
    )


def _params(
    context: Context,
    request: SamplingRequest,
    *,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    names: Mapping[str, str],
    more_stop: Sequence[str] = (),
) -> SamplingParams:
    """`names`: the engine's field names for which the request has others."""
    stop = [request.stop] if isinstance(request.stop, str) else request.stop
    try:
        return SamplingParams(
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            min_p=request.min_p,
            repetition_penalty=request.repetition_penalty,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            logit_bias={int(token_id): bias for token_id, bias in request.logit_bias.items()},
            seed=request.seed,
            max_tokens=max_tokens,
            min_tokens=request.min_tokens,
            stop=(*stop, *more_stop),
            stop_token_ids=frozenset(request.stop_token_ids),
            include_stop=request.include_stop_str_in_output,
            ignore_eos=request.ignore_eos,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )
    except RequestError as error:
        raise renamed(error, names) from None


def _check_stream_options(request: GenerationRequest) -> None:
    if request.stream_options is not None and not request.stream:
        raise RequestError("stream_options needs stream: true", "stream_options")


def renamed(error: RequestError, names: Mapping[str, str]) -> RequestError:
    """The same error in the request's own field names."""
    name = names.get(error.field or "")
    if name is None or error.field is None:
        return error
    return type(error)(str(error).replace(error.field, name, 1), name)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
