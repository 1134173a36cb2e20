"""A data set card: what is in a data set, from its manifest alone."""

from __future__ import annotations

from peftbench.data import manifest
from peftbench.data.listing import READERS
from peftbench.data.manifest import Manifest
from peftbench.spec import DatasetSpec

NAMED = 12  # absent classes that a card names


def card(spec: DatasetSpec) -> str:
    """Markdown with counts, classes, known issues, licence and source; no image is decoded.

    A data set that was never prepared is listed, and hashed, now.
    """
    listing = READERS[spec.reader](spec)
    stored = manifest.stored(listing.home.folder, spec) if listing.home is not None else None
    return page(stored or Manifest.of(spec, listing), listing.notice)


def page(prepared: Manifest, notice: str = "") -> str:
    """The card that a manifest makes."""
    lines = [f"# {prepared.name}: {prepared.title}", ""]
    if prepared.suite:
        belongs = f"Suite {prepared.suite}, version {prepared.suite_version}"
        lines += [belongs + (f"; group {prepared.group}." if prepared.group else "."), ""]
    encodings = ", ".join(f"{suffix} {count:,}" for suffix, count in prepared.encodings().items())
    lines += [
        f"* Licence: {prepared.licence}",
        f"* Source: {prepared.source}",
        *([f"* Layout: {prepared.layout}"] if prepared.layout else []),
        f"* Stored as: {encodings}",
        f"* Manifest: `{prepared.rollup}`",
    ]
    if "test" in prepared.splits:
        copies = prepared.copies_in_test()
        lines.append(f"* Test images that are also in train or val, byte for byte: {copies}")
    lines += [f"* {remark}" for remark in (*prepared.notes, *prepared.known_issues)]
    return "\n".join([*lines, "", *_splits(prepared), "", *_classes(prepared)]) + (
        f"\n\n## Notice\n\n{notice.rstrip()}\n" if notice else "\n"
    )


def published(spec: DatasetSpec) -> str:
    """The card of a data set that is not on this machine."""
    facts = spec.facts
    sizes = {"classes": facts.classes, "train": facts.train, "val": facts.val, "test": facts.test}
    counts = ", ".join(f"{what} {count:,}" for what, count in sizes.items() if count is not None)
    lines = [
        f"# {spec.name}: {facts.title}",
        "",
        f"Not on this machine. Suite {spec.suite}, version {spec.suite_version}"
        + (f"; group {spec.group}." if spec.group else "."),
        "",
        f"* Licence: {facts.licence}",
        f"* Source: {facts.source}",
        f"* Published: {counts}",
        *(f"* {issue}" for issue in facts.oddities),
        "",
        f"peftbench data prepare {spec.name}",
    ]
    return "\n".join(lines) + "\n"


def _splits(prepared: Manifest) -> list[str]:
    rows = ["| split | images | classes | absent |", "|---|---|---|---|"]
    total = len(prepared.class_names)
    for split, counts in prepared.counts().items():
        absent = [prepared.class_names[i] for i, count in enumerate(counts) if not count]
        more = f" and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
        absences = ", ".join(absent[:NAMED]) + more or "none"
        rows.append(
            f"| {split} | {sum(counts):,} | {total - len(absent)} of {total} | {absences} |"
        )
    return rows


def _classes(prepared: Manifest) -> list[str]:
    counts = prepared.counts()
    rows = ["| class | " + " | ".join(counts) + " |", "|---" * (len(counts) + 1) + "|"]
    for number, name in enumerate(prepared.class_names):
        cells = " | ".join(str(of_split[number]) for of_split in counts.values())
        rows.append(f"| {name} | {cells} |")
    totals = " | ".join(f"**{sum(of_split)}**" for of_split in counts.values())
    return [*rows, f"| **{len(prepared.class_names)} classes** | {totals} |"]
