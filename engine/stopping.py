"""What becomes of a sampled token: text, and the decision whether its sequence ends with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ostinato.engine.errors import NotFiniteError
from ostinato.engine.events import Fault, FinishReason, Sampled, TokenEvent
from ostinato.engine.types import Sequence

if TYPE_CHECKING:
    from ostinato.engine.snapshots import Snapshot


def accept(sequence: Sequence, sampled: Sampled, eos_token_ids: frozenset[int]) -> TokenEvent:
    """Appends the sampled token, if there is one, and tells what is to be sent.

    A token that ends the sequence (end of text, or one of `stop_token_ids`) is reported by id, not as text.
    """
    if sampled.error is not None:
        return failure(sequence, sampled.error, sampled.fault)
    if sampled.token_id is None:
        return _after_prompt_chunk(sequence, sampled)
    token_id, can_stop = sampled.token_id, sequence.allows_stop
    sequence.append(token_id)
    text = ""
    reason: FinishReason | None = None
    stop: str | int | None = None
    if can_stop and token_id in stop_tokens(sequence, eos_token_ids):
        reason, stop = FinishReason.STOP, token_id
    elif sequence.text is not None:
        delta = sequence.text.push(token_id, allow_stop=can_stop)
        text = delta.text
        if delta.stop is not None:
            reason, stop = FinishReason.STOP, delta.stop
    if reason is None and len(sequence.output) >= sequence.params.max_tokens:
        reason = FinishReason.LENGTH
    if (
        reason is not None
        and sequence.text is not None
        and not isinstance(stop, str)
        and not _goes_on(sequence, reason)
    ):
        text += sequence.text.flush()
    return _event(sequence, sampled, text, reason, stop)


def _goes_on(sequence: Sequence, reason: FinishReason) -> bool:
    """Whether what is held back belongs to a state to be stored, with which the text may go on."""
    return reason is FinishReason.LENGTH and sequence.keep is not None


def stop_tokens(sequence: Sequence, eos_token_ids: frozenset[int]) -> frozenset[int]:
    """The token ids that end this sequence."""
    ids = sequence.params.stop_token_ids
    return ids if sequence.params.ignore_eos else ids | eos_token_ids


def failure(sequence: Sequence, error: str, fault: Fault = Fault.STEP) -> TokenEvent:
    """The final event of a sequence that cannot go on."""
    return TokenEvent(sequence.id, sequence.index, finish_reason=FinishReason.ERROR, error=error, fault=fault)


def failed(sequence: Sequence, error: Exception) -> TokenEvent:
    """The same, by what was raised."""
    return failure(sequence, str(error), Fault.STATE if isinstance(error, NotFiniteError) else Fault.STEP)


def aborted(sequence: Sequence) -> TokenEvent:
    """The final event of a sequence that was given up."""
    return TokenEvent(sequence.id, sequence.index, finish_reason=FinishReason.ABORTED)


def guarded(sequence: Sequence, snapshots: tuple[Snapshot, ...]) -> TokenEvent:
    """The final event of a sequence that the state guard has ended: what its text held back, and what is stored of it.

    The token that its last logits would choose is not chosen.
    """
    text = "" if sequence.text is None or sequence.closing is not None else sequence.text.flush()
    return TokenEvent(
        sequence.id, sequence.index, text=text, finish_reason=FinishReason.STATE_GUARD, snapshots=snapshots
    )


def _after_prompt_chunk(sequence: Sequence, sampled: Sampled) -> TokenEvent:
    """Nothing was sampled: the prompt is not read yet, or was only to be scored."""
    scored_only = sequence.num_unread == 0 and sequence.params.max_tokens == 0
    return _event(sequence, sampled, "", FinishReason.LENGTH if scored_only else None, None)


def _event(
    sequence: Sequence, sampled: Sampled, text: str, reason: FinishReason | None, stop: str | int | None
) -> TokenEvent:
    return TokenEvent(
        sequence.id,
        sequence.index,
        token_ids=() if sampled.token_id is None else (sampled.token_id,),
        text=text,
        logprobs=() if sampled.logprobs is None else (sampled.logprobs,),
        prompt_logprobs=sampled.prompt_logprobs,
        finish_reason=reason,
        stop_reason=stop,
    )
