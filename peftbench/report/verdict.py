"""Which method is ahead, in sentences that say no more than the runs tell."""

from __future__ import annotations

from peftbench.report.words import counted, first_of
from peftbench.statistics import power
from peftbench.statistics.best import Best
from peftbench.statistics.new_images import IMAGES

MOST_NAMED = 6
MOST_IMAGES = 100_000  # more are named as "more than"
SAME = 1e-9  # means that are nearer are equal but for rounding


def verdict(leaders: Best, what: str = "") -> str:
    """One to three sentences on the best method over seeds; `what` names the average.

    "Ahead" is said only of a method that its runs tell from every other one.
    """
    of = f" ({', '.join(filter(None, (what, behind(leaders))))})"
    told = "test images tell" if on_images(leaders) else "runs tell"
    value = f"{100 * leaders.means[leaders.best]:.1f} %{of}"
    others = leaders.members[1:]
    if len(leaders.means) < 2:
        return f"{leaders.best} has {value}, and there is no other method to compare it with."
    if not others:
        return (
            f"{leaders.best} is ahead with {value}: its {told} it from every other method at "
            f"{100 * leaders.alpha:.0f} %."
        )
    if leaders.conclusive:
        start = f"Which of these is best cannot be told: {first_of(leaders.members, MOST_NAMED)}."
        start += f" {leaders.best} has the highest mean, {value}, inside the noise."
    else:
        start = f"Which method is best cannot be told: {leaders.best} has the highest mean, {value}"
        start += f", but so few {'test images' if on_images(leaders) else 'runs'} tell no two "
        start += "methods apart."
    hint = " dataset.folds=5 tests every image once." if leaders.splits == 1 else ""
    return f"{start} {what_it_would_take(leaders)}{hint if on_images(leaders) else ''}"


def on_images(leaders: Best) -> bool:
    """Whether the claim is about new images, and not about seeds or data sets."""
    return leaders.over.startswith(IMAGES)


def behind(leaders: Best) -> str:
    """What a claim rests on: `120 test images, 5 splits, 2 seeds`, or the seeds alone."""
    seeds = counted(leaders.seeds, "seed")
    if not on_images(leaders):
        return seeds
    images = [f"{leaders.images:,} test images"] if leaders.images else []
    return ", ".join([*images, counted(leaders.splits, "split"), seeds])


def what_it_would_take(leaders: Best) -> str:
    """How much would tell the best from the nearest method that it is not told from.

    Seeds, or of a claim about new images test images.
    """
    nearest = leaders.members[1]
    needed = leaders.needed.get(nearest)
    if on_images(leaders):
        return _images_it_would_take(leaders, nearest, needed)
    if needed is None and leaders.means[leaders.best] == leaders.means[nearest]:
        return f"It would take other seeds to see a difference from {nearest}: the means are equal."
    if needed is None:
        return (
            "One seed does not show how much seeds differ: run at least "
            f"{counted(leaders.least, 'seed')} of each method."
        )
    number = (
        f"more than {power.MOST_SEEDS:,} seeds"
        if needed > power.MOST_SEEDS
        else f"about {counted(max(needed, leaders.seeds + 1), 'seed')}"
    )
    return (
        f"It would take {number} of each to tell it from {nearest}, if they differ by as much as "
        f"seen (t-test at {100 * leaders.alpha:.0f} %, corrected for all pairs, power "
        f"{100 * power.POWER:.0f} %)."
    )


def _images_it_would_take(leaders: Best, nearest: str, needed: int | None) -> str:
    if leaders.means[leaders.best] - leaders.means[nearest] < SAME:
        return f"{nearest} has the same mean."
    if needed is None:
        return "One split does not show how splits differ."
    number = f"about {_rounded(max(needed, (leaders.images or 0) + 1))}"
    if needed > MOST_IMAGES:
        number = f"more than {MOST_IMAGES:,}"
    return (
        f"It would take {number} test images to tell it from {nearest}, if they differ by as much "
        f"as seen (test of single images at {100 * leaders.alpha:.0f} %, corrected for all pairs, "
        f"power {100 * power.POWER:.0f} %)."
    )


def _rounded(number: int) -> str:
    """With two digits: 1,234 is about 1,200."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return f"{round(number / unit) * unit:,}"
