"""Are the rules that the code quotes still what the BOLTs say? `python scripts/check_quotes.py PATH_TO_THE_BOLTS`

Code and tests quote the rule that they keep: `# BOLT 2, "MUST fail the channel"`, also several: `"one", and "another"`.
Prints each quotation that does not stand in that document and ends with status 1 if there is any. Layout and markup do
not count, `...`, `[...]` and insertions in square brackets stand for what was left out or added, and a rule may be
joined from its conditions by colons.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("channeld", "watchtower", "wallet", "tests")
_QUOTED = r'"((?:[^"\\]|\\.){6,900}?)"'
_RULE = re.compile(rf"BOLT (\d+)(?:, |: ?){_QUOTED}((?:,? (?:and )?{_QUOTED})*)")
_LEFT_OUT = re.compile(r"\[\.\.\.\]|\.\.\.|\[[^\]]*\]")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_FOOTNOTE = re.compile(r"<sup>.*?</sup>")
_MARKUP = re.compile(r"[\s\-*`_#>]+")
_JOINT = re.compile(r": |; |, and |\. |, ")
SHORTEST = 6


class Quotation(NamedTuple):
    """What a file says that a BOLT says."""

    path: Path
    bolt: int
    text: str


def normal(text: str) -> str:
    """Without layout and markup."""
    return _MARKUP.sub(" ", _FOOTNOTE.sub("", _LINK.sub(r"\1", text))).lower().strip(" .,:;")


def quotations(path: Path, source: str) -> Iterator[Quotation]:
    """All of a file."""
    joined = re.sub(r"\n\s*(?:#\s?)?", " ", source)
    for found in _RULE.finditer(joined):
        for text in (found[2], *re.findall(_QUOTED, found[3])):
            yield Quotation(path, int(found[1]), text)


def stands_in(text: str, bolt: str) -> bool:
    """Whether a quotation is in a BOLT, both in their normal form but for what is left out of the quotation."""
    for part in _LEFT_OUT.split(text):
        if normal(part) in bolt:
            continue
        clauses = [normal(clause) for clause in _JOINT.split(part)]
        if not all(clause in bolt for clause in clauses if len(clause) >= SHORTEST):
            return False
    return True


def load(folder: Path) -> dict[int, str]:
    """The documents by number, in normal form."""
    return {int(path.name[:2]): normal(path.read_text()) for path in sorted(folder.glob("[0-9][0-9]-*.md"))}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bolts", type=Path, help="a folder with 01-messaging.md and its siblings")
    bolts = load(parser.parse_args(arguments).bolts)
    if not bolts:
        parser.error("there are no BOLTs in this folder: give the one with 01-messaging.md in it")
    total, wrong = 0, 0
    for path in sorted(file for name in SOURCES for file in (ROOT / name).rglob("*.py")):
        for quotation in quotations(path, path.read_text()):
            total += 1
            if not stands_in(quotation.text, bolts.get(quotation.bolt, "")):
                wrong += 1
                print(f"{path.relative_to(ROOT)}: BOLT {quotation.bolt} does not say: {quotation.text}")
    print(f"{total} quotations, {wrong} of them not found")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
