"""Repair: contents whose record is lost get one from their own metadata, and damaged contents are found."""

import json
from dataclasses import dataclass, field

from ostinato.engine.errors import StateIdError
from ostinato.engine.store.content import ContentSummary, set_aside, summarize
from ostinato.engine.store.main_tier import MainTier
from ostinato.engine.store.record import (
    ANONYMOUS,
    CONTENT,
    DELETED,
    RECORDS,
    StateRecord,
    check_id,
    check_owner,
    content_digest,
    parse_record,
    record_json,
)


@dataclass
class RepairReport:
    """What a repair has found.

    Attributes:
        rebuilt: the new records. Their owner is the one under whom a damaged record lay, else "": it is not known.
        lost: the keys of damaged records that no content could replace: forks, say. They are deleted.
        damaged: the keys of damaged contents. They now lie under `damaged/`.
        foreign: the keys of whole contents that are no states: they lack the metadata.
    """

    rebuilt: list[StateRecord] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


def repair_tier(tier: MainTier, now: float) -> RepairReport:
    """Reads every record and every content of a tier.

    Raises:
        StoreUnavailableError: the tier cannot be read or written.
    """
    report = RepairReport()
    known, unreadable = _read_records(tier)
    for info in list(tier.blobs.list(CONTENT)):
        digest = content_digest(info.key)
        found = tier.blobs.get_version(info.key)
        if digest is None or found is None:
            continue
        summary = summarize(info.key, found[0])
        if summary is None or summary.digest != digest:
            set_aside(tier.blobs, info.key, *found)
            report.damaged.append(info.key)
            continue
        owners = [owner for owner, id in unreadable.values() if id == f"st_{digest}"]
        if owners or (digest not in known and tier.blobs.stat(f"{DELETED}{digest}") is None):
            records = [_rebuild(summary, owner, info.modified, now) for owner in owners or [""]]
            _add_records(tier, report, info.key, records)
    rebuilt = {record.key for record in report.rebuilt}
    report.lost = sorted(set(unreadable) - rebuilt)
    for key in report.lost:
        tier.blobs.delete(key)
    return report


def _read_records(tier: MainTier) -> tuple[set[str], dict[str, tuple[str, str]]]:
    """The contents that readable records refer to, and the unreadable ones: key -> (owner, id), as the key says."""
    known: set[str] = set()
    unreadable: dict[str, tuple[str, str]] = {}
    for info in list(tier.blobs.list(RECORDS)):
        data = tier.blobs.get(info.key)
        if data is None:
            continue
        try:
            known.add(parse_record(info.key, data).content)
        except ValueError:
            unreadable[info.key] = _named_in(info.key)
    return known, unreadable


def _named_in(key: str) -> tuple[str, str]:
    """The owner and the id in the key of a record; "" twice if they are none."""
    folder, _, name = key.removeprefix(RECORDS).partition("/")
    try:
        return check_owner("" if folder == ANONYMOUS else folder), check_id(name.removesuffix(".json"))
    except (ValueError, StateIdError):
        return "", ""


def _add_records(tier: MainTier, report: RepairReport, key: str, records: list[StateRecord | None]) -> None:
    with tier.blobs.exclusive():
        # Another process may have stored the same content since the records were read.
        known = {record.content for record in tier.table.all()}
        for record in records:
            if record is None:
                report.foreign.append(key)
            elif record.owner or record.content not in known:
                tier.table.put(record)
                report.rebuilt.append(record)


def _rebuild(summary: ContentSummary, owner: str, created: float, now: float) -> StateRecord | None:
    """The record that a content's metadata describes: key "ostinato", a JSON object with parent, tokens and model."""
    try:
        fields = json.loads(summary.metadata["ostinato"])
        parent = fields["parent"] if fields["parent"] is None else check_id(str(fields["parent"]))
        tokens, model, lossy = int(fields["tokens"]), str(fields["model"]), bool(fields.get("lossy", False))
    except (KeyError, ValueError, OverflowError, TypeError, AttributeError, RecursionError, StateIdError):
        return None
    record = StateRecord(
        id=f"st_{summary.digest}",
        content=summary.digest,
        owner=owner,
        parent=parent,
        tokens=tokens,
        bytes=summary.bytes,
        created=created,
        used=now,
        expires=None,
        labels=(),
        pinned=False,
        model=model,
        mark=None,
        lossy=lossy,
    )
    try:
        return parse_record(record.key, record_json(record))  # whoever wrote the metadata, it must be readable
    except ValueError:
        return None
