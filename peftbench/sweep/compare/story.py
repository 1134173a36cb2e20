"""What a comparison says at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peftbench.sweep.compare.choice import Choice
from peftbench.sweep.compare.standing import ClassRow, Leaderboard, Result, chance
from peftbench.tasks import TOP1

WEAK = 0.15  # recall below the mean, from which on a class is named
FEW = 30  # pictures of a class, below which more of them are the first thing to try
NAMED = 3  # classes


def leaderboard(now: Leaderboard) -> list[str]:
    """A line a method, best on val first."""
    head = ("method", "val", "test", "top-1", "per class", "tuned", "train", "splits")
    grid = [head]
    for row in now.rows:
        mark = " *" if row.method in now.level else ""
        grid.append(
            (
                row.method + mark,
                f"{100 * row.val:.1f}",
                f"{100 * row.test:.1f} ± {100 * row.error:.1f}",
                f"{100 * row.accuracy:.1f}",
                f"{100 * row.per_class:.1f}",
                f"{row.params:,}",
                f"{row.seconds:.0f} s",
                str(row.splits),
            )
        )
    sizes = [max(map(len, column)) for column in zip(*grid, strict=True)]
    return [
        "  " + "  ".join([line[0].ljust(sizes[0]), *map(str.rjust, line[1:], sizes[1:])])
        for line in grid
    ]


def explained(now: Leaderboard, metric: str) -> list[str]:
    """How to read the leaderboard."""
    lines = [
        f"Ranked by {metric} on val, in %; test ± one standard error. tuned: parameters besides "
        "the classifier."
    ]
    if now.partial:
        lines.append(  # it is always there, and always complete
            f"{', '.join(now.partial)}: fewer splits, moved by how far logistic is off on those."
        )
    return lines


def further(divisions: int, splits: int, folds: bool) -> list[str]:
    """What was done with the time that was left.

    Args:
        divisions: that were run beyond the first `splits`.
        folds: whether they are folds that were drawn again, or else the same split with new seeds.
    """
    if divisions < 1:
        return []
    if folds:
        times = -(-divisions // splits)
        drawn = "once more" if times == 1 else f"{times} more times"
        what = f"folds were drawn {drawn}, and {divisions} of them tested"
    else:
        what = f"methods that take steps ran with {divisions} more seed{'s' * (divisions > 1)}"
    return [f"Time was left: {what}. A picture that was tested several times counts as one."]


def verdict(now: Leaderboard, found: Mapping[str, Sequence[Result]], metric: str) -> list[str]:
    """Which methods cannot be told apart, and which of them to take.

    Args:
        found: the results of each method.
    """
    taken = now.row(now.recommended)
    lines = []
    if len(now.level) > 1:
        lines.append(
            f"The test pictures do not tell these apart (marked *): {', '.join(now.level)}."
        )
    else:
        lines.append(f"{now.level[0]} is ahead of every other method on the test pictures.")
    why = "the cheapest of them within one standard error of the first on val"
    if len(now.level) == 1:
        why = "the one that is ahead"
    elif now.recommended == now.level[0]:
        why = "the first on val, and no cheaper one is within one standard error"
    lines.append(
        f"Take {now.recommended}: {why}, {100 * taken.accuracy:.1f} % top-1 and "
        f"{100 * taken.per_class:.1f} % mean per class."
    )
    majority = next((row for row in now.rows if row.method == "majority"), None)
    if majority is not None and metric == TOP1 and majority.splits == taken.splits:
        p = chance(found[taken.method], found["majority"])
        if p >= 0.05 or taken.accuracy <= majority.accuracy:
            lines.append(
                f"It is not told from always saying the largest class "
                f"({100 * majority.accuracy:.1f} % top-1)."
            )
    return lines


def advice(
    now: Leaderboard,
    choice: Choice,
    classes: Sequence[ClassRow],
    pictures: Mapping[str, int],
    more: Sequence[str],
) -> list[str]:
    """What would help most, in the order in which to try it.

    Args:
        classes: of the recommended method, worst first.
        pictures: of each class, all splits together.
        more: sentences about time: methods that were left out, splits that are missing.
    """
    lines = [choice.better] if choice.better else []
    mean = sum(row.recall for row in classes) / max(1, len(classes))
    weak = [row for row in classes if row.recall < mean - WEAK]
    few = [row for row in weak if pictures.get(row.name, FEW) < FEW][:NAMED]
    if few:
        named = ", ".join(
            f"{row.name} ({pictures[row.name]} pictures, {100 * row.recall:.0f} % right)"
            for row in few
        )
        lines.append(f"More pictures of {named}.")
    elif weak:
        named = ", ".join(f"{row.name} ({100 * row.recall:.0f} %)" for row in weak[:NAMED])
        lines.append(f"Look at the pictures of {named}: labels may be wrong, or classes alike.")
    return [*lines, *more]
