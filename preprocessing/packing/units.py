"""Units of a packing job: which there are, and the manifest that says that one is done.

    work/groups/00003.json            a group of parts: its shard, its held-out segments, its counts
    work/groups/00003-heldout.arrow   held-out segments that wait for the others, one a row, in the shards' columns
    work/heldout/00000.json           a shard of held-out segments of many groups

A manifest is written last, so a unit is done when its manifest is there and its files are as it says. What a unit holds
follows from the corpus and the settings, never from the workers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kebiolm.data.shard_format import WORK_FOLDER
from kebiolm.files import verify_file, write_json
from preprocessing.packing.counts import SplitCounts

GROUPS, HELDOUT_GROUPS = "groups", "heldout"
UNIT_FORMAT, UNIT_VERSION = "kebiolm-pack-unit", 1

_MEND = "run the command again; it makes only what is missing"


def group_sizes(sizes: Sequence[int], most: int) -> list[range]:
    """Group consecutive things so that no group's sizes add up to more than `most`, but for things that alone do.

    Returns:
        The things of each group, by number; every thing once, none where there are no things.
    """
    groups: list[range] = []
    first, total = 0, 0
    for number, size in enumerate(sizes):
        if number > first and total + size > most:
            groups.append(range(first, number))
            first, total = number, 0
        total += size
    return [*groups, range(first, len(sizes))] if sizes else []


def heldout_name(group: int) -> str:
    """Where the held-out segments of a group wait, from the job's folder on."""
    return f"{WORK_FOLDER}/{GROUPS}/{group:05d}-heldout.arrow"


def write_unit(
    out: Path, stage: str, number: int, *, splits: dict[str, SplitCounts], files: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Write the manifest of a unit whose files are all in place, and return it.

    Args:
        out: the job's folder.
        stage: `GROUPS` or `HELDOUT_GROUPS`.
        number: of the unit.
        splits: what the unit added up to.
        files: name, from the job's folder on -> bytes, SHA-256 and rows.
    """
    manifest = {
        "format": UNIT_FORMAT,
        "version": UNIT_VERSION,
        "counts": {"documents_in": sum(counts.documents for counts in splits.values())},
        "splits": {split: vars(counts) for split, counts in splits.items()},
        "files": files,
    }
    write_json(_manifest_path(out, stage, number), manifest)
    return manifest


def read_unit(out: Path, stage: str, number: int) -> dict[str, Any] | None:
    """The manifest of a unit that is done and whole; None where it must be made (again)."""
    try:
        manifest = json.loads(_manifest_path(out, stage, number).read_text(encoding="utf-8"))
        if (manifest["format"], manifest["version"]) != (UNIT_FORMAT, UNIT_VERSION):
            return None
        for name, recorded in manifest["files"].items():
            verify_file(out, name, recorded, mend=_MEND)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest


def counts_of(manifests: Sequence[dict[str, Any]], split: str) -> SplitCounts:
    """Sum of one split's counts over units."""
    return sum((SplitCounts(**manifest["splits"].get(split, {})) for manifest in manifests), SplitCounts())


def _manifest_path(out: Path, stage: str, number: int) -> Path:
    return out / WORK_FOLDER / stage / f"{number:05d}.json"
