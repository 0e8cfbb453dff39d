"""How many bytes of states each owner may hold in the last tier, and how many it holds.

An owner is charged for each content that its states have, once and before compression, as its records give the size,
and for each record. A content that another owner has too is charged to both: what one owner holds does not depend on
others.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from ostinato.engine.errors import StateQuotaError
from ostinato.engine.store.index import RecordTable
from ostinato.engine.store.record import StateRecord
from ostinato.engine.store.tier_budget import LISTING_SECONDS

RECORD_BYTES = 1024
"""What a record is charged: about its size as JSON. Forks have no content of their own, and are to be bounded too."""

LimitOf = Callable[[str], int | None]
"""Bytes that an owner may hold; None for no bound. Called from several threads."""


def no_limit(_: str) -> None:
    """Every owner may hold what the tier holds."""


def charges_of(records: Iterable[StateRecord]) -> dict[str, int]:
    """What these records cost their owner: bytes by what they are for, each content once."""
    charges: dict[str, int] = {}
    for record in records:
        charges[record.content] = record.bytes
        charges[record.key] = RECORD_BYTES
    return charges


@dataclass
class _Account:
    """Of one owner. present: what was there when its records were last listed, and what was written since."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    writers: Counter[str] = field(default_factory=Counter)
    pending: dict[str, int] = field(default_factory=dict)
    present: dict[str, int] = field(default_factory=dict)
    listed_at: float | None = None

    def total(self, more: Mapping[str, int]) -> int:
        return sum({**self.present, **self.pending, **more}.values())


class OwnerBudgets:
    """Room for the states of owners that have a limit. Thread-safe; others cost nothing.

    A listing is trusted for `LISTING_SECONDS` while the limit is not reached, so other processes that write to the same
    store may exceed it by what they write meanwhile. Nobody is refused without a new listing.
    """

    def __init__(self, table: RecordTable, limit_of: LimitOf, clock: Callable[[], float]) -> None:
        self._table = table
        self._limit_of = limit_of
        self._clock = clock
        self._lock = threading.Lock()
        self._accounts: defaultdict[str, _Account] = defaultdict(_Account)

    @contextmanager
    def room(self, records: list[StateRecord]) -> Iterator[None]:
        """Keeps room for records of one owner while the block writes them.

        Raises:
            StateQuotaError: they would take the owner beyond its limit.
        """
        owner = records[0].owner
        limit = self._limit_of(owner)
        if limit is None:
            yield
            return
        account, charges = self._account(owner), charges_of(records)
        with account.lock:
            self._check(owner, account, charges, limit)
            account.pending.update(charges)
            account.writers.update(charges.keys())  # a Counter adds up what a mapping has
        written = False
        try:
            yield
            written = True
        finally:
            with account.lock:
                _settle(account, charges, written)

    def check(self, owner: str, num_bytes: int) -> None:
        """Raises StateQuotaError: a new state of this size would take the owner beyond its limit."""
        limit = self._limit_of(owner)
        if limit is not None:
            account = self._account(owner)
            with account.lock:
                self._check(owner, account, {"": num_bytes + RECORD_BYTES}, limit)

    def _account(self, owner: str) -> _Account:
        with self._lock:
            return self._accounts[owner]

    def _check(self, owner: str, account: _Account, charges: Mapping[str, int], limit: int) -> None:
        if self._is_recent(account) and account.total(charges) <= limit:
            return
        now = self._clock()
        living = [record for record in self._table.all(owner) if record.expires is None or record.expires > now]
        account.present, account.listed_at = charges_of(living), now
        if account.total(charges) > limit:
            held = account.total({})
            raise StateQuotaError(
                f"this API key may hold {limit} bytes of states and holds {held}, "
                f"which leaves no room for {account.total(charges) - held} more: delete states or let them expire"
            )

    def _is_recent(self, account: _Account) -> bool:
        return account.listed_at is not None and abs(self._clock() - account.listed_at) <= LISTING_SECONDS


def _settle(account: _Account, charges: Mapping[str, int], written: bool) -> None:
    for name, num_bytes in charges.items():
        account.writers[name] -= 1
        if not account.writers[name]:
            del account.writers[name], account.pending[name]
        if written:
            account.present[name] = num_bytes
