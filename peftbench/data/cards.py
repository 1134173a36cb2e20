"""A data set card: what is in a data set, from its manifest alone."""

from __future__ import annotations

import numpy as np

from peftbench.data.listing import READERS, Listing
from peftbench.spec import DatasetSpec


def card(spec: DatasetSpec) -> str:
    """Markdown with counts, classes, licence and source; no image is decoded."""
    listing = READERS[spec.reader](spec)
    belongs = ""
    if listing.suite:
        belongs = f"Suite {listing.suite}, version {listing.suite_version}"
        belongs += f"; group {listing.group}." if listing.group else "."
    facts = [f"# {spec.name}: {listing.title}", ""]
    facts += [belongs, ""] if belongs else []
    facts += [
        f"* Licence: {listing.licence}",
        f"* Source: {listing.source}",
        f"* Manifest: `{listing.manifest}`",
        f"* Test images that are also in train or val, byte for byte: {listing.copies_in_test()}",
        "",
        *_counts(listing),
    ]
    if listing.notice:
        facts += ["", "## Notice", "", listing.notice.rstrip()]
    return "\n".join(facts) + "\n"


def _counts(listing: Listing) -> list[str]:
    per_split = [
        np.bincount(part.labels, minlength=len(listing.class_names)).tolist()
        for _, part in listing.splits()
    ]
    rows = ["| class | train | val | test |", "|---|---|---|---|"]
    for name, *counts in zip(listing.class_names, *per_split, strict=True):
        rows.append(f"| {name} | " + " | ".join(str(count) for count in counts) + " |")
    totals = " | ".join(f"**{sum(counts)}**" for counts in per_split)
    return [*rows, f"| **{len(listing.class_names)} classes** | {totals} |"]
