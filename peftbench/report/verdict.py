"""Which method is ahead, in sentences that say no more than the runs tell."""

from __future__ import annotations

from peftbench.report.words import counted, first_of
from peftbench.statistics import power
from peftbench.statistics.best import Best

MOST_NAMED = 6


def verdict(leaders: Best, what: str = "") -> str:
    """One to three sentences on the best method over seeds; `what` names the average.

    "Ahead" is said only of a method that its runs tell from every other one.
    """
    seeds = counted(leaders.seeds, "seed")
    of = f" ({what}, {seeds})" if what else f" ({seeds})"
    value = f"{100 * leaders.means[leaders.best]:.1f} %{of}"
    others = leaders.members[1:]
    if len(leaders.means) < 2:
        return f"{leaders.best} has {value}, and there is no other method to compare it with."
    if not others:
        return (
            f"{leaders.best} is ahead with {value}: its runs tell it from every other method at "
            f"{100 * leaders.alpha:.0f} %."
        )
    if leaders.conclusive:
        start = f"Which of these is best cannot be told: {first_of(leaders.members, MOST_NAMED)}."
        start += f" {leaders.best} has the highest mean, {value}, inside the noise."
    else:
        start = f"Which method is best cannot be told: {leaders.best} has the highest mean, {value}"
        start += ", but so few runs tell no two methods apart."
    return f"{start} {seeds_it_would_take(leaders)}"


def seeds_it_would_take(leaders: Best) -> str:
    """How many seeds would tell the best from the nearest method that it is not told from."""
    nearest = leaders.members[1]
    needed = leaders.needed.get(nearest)
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
