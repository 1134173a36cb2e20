"""What methods say of single images: who is right where, together, and how surely.

One array entry an image of the test split, in its order. Several seeds are rows: (seeds, images).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from peftbench.statistics.scores import Array

BINS = 15  # of equal width; as in the `ece` of a record

Classes = npt.NDArray[np.integer]
Hits = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Discordance:
    """Images on which one of two methods does better, and the exact test of their numbers."""

    first_only: int
    second_only: int
    images: int
    p: float


def mcnemar(first: Hits, second: Hits) -> Discordance:
    """McNemar's exact test of two methods on the same images, pooled over seeds image by image.

    Each argument tells whether the method was right, (images,) or (seeds, images). An image counts
    once: for the method that is right on it in the larger share of its seeds. Counting it once a
    seed would take the same image for several independent ones. With one seed each this is
    McNemar's test; the p-value is the two-sided binomial one, exact for every count.
    """
    a, b = np.atleast_2d(first), np.atleast_2d(second)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[1]} images of the first method, {b.shape[1]} of the second")
    # whole numbers: shares such as 1/3 and 2/6 would differ by rounding
    lead = a.sum(axis=0) * len(b) - b.sum(axis=0) * len(a)
    wins, losses = int(np.sum(lead > 0)), int(np.sum(lead < 0))
    return Discordance(wins, losses, a.shape[1], exact_sign_p(wins, losses))


def exact_sign_p(wins: int, losses: int) -> float:
    """Two-sided chance of a split at least so uneven when both sides are equally likely."""
    from scipy.special import betainc  # `scipy.stats` takes a second to import

    if wins + losses == 0:
        return 1.0
    fewer, more = sorted((wins, losses))
    # of a binomial distribution of chance 1/2, the cumulative one up to `fewer`
    return float(min(1.0, 2 * betainc(more, fewer + 1, 0.5))) if more > fewer else 1.0


def agreement(predicted: Mapping[str, Classes]) -> pd.DataFrame:
    """Share of images of which two methods say the same class, labels x labels.

    Each value is (images,) or (seeds, images); run k is compared with run k, and the mean over
    runs taken. On the diagonal, different runs of one method are compared: what seeds alone
    change. It is NaN where there is one run.
    """
    runs = {label: np.atleast_2d(classes) for label, classes in predicted.items()}
    out = pd.DataFrame(np.nan, index=list(runs), columns=list(runs))
    for first, a in runs.items():
        for second, b in runs.items():
            if first == second:
                same = [np.mean(a[i] == a[j]) for i in range(len(a)) for j in range(i)]
            else:
                same = [np.mean(x == y) for x, y in zip(a, b, strict=False)]
            out.loc[first, second] = float(np.mean(same)) if same else np.nan
    return out


def error_overlap(first: Hits, second: Hits) -> float:
    """Share of the images that either gets wrong which both get wrong; NaN where none is wrong.

    Both arguments are (images,): whether each image was right.
    """
    either = int(np.sum(~first | ~second))
    return float(np.sum(~first & ~second) / either) if either else float("nan")


def majority_vote(classes: Classes, confidence: Array) -> Classes:
    """(images,): the class that most members name; both arguments are (members, images).

    Of equally many votes the class with the larger sum of confidences wins, then the lower one.
    """
    return _elect(classes, np.asarray(confidence, dtype=float), by_votes=True)


def confidence_weighted(classes: Classes, confidence: Array) -> Classes:
    """(images,): the class with the largest sum of the confidences of those that name it.

    Both arguments are (members, images). Only the confidence in the class that was named is
    recorded, so this is not the mean of the probabilities. Of equal sums the lower class wins.
    """
    return _elect(classes, np.asarray(confidence, dtype=float), by_votes=False)


def _elect(classes: Classes, confidence: Array, *, by_votes: bool) -> Classes:
    same = classes[:, None, :] == classes[None, :, :]  # (members, members, images)
    sums = np.round(np.einsum("ijn,jn->in", same, confidence), 9)
    votes = same.sum(axis=1) if by_votes else np.zeros_like(classes)
    order = np.lexsort((classes, -sums, -votes), axis=0)  # the last key counts first
    return np.asarray(np.take_along_axis(classes, order[:1], axis=0)[0])


def ensembles(
    classes: Mapping[str, Classes], confidence: Mapping[str, Array], labels: Classes
) -> pd.DataFrame:
    """Accuracy of the members alone and of both ensembles, one row a run that all members have.

    Each value is (seeds, images). Columns: `run`, `best_single` (the best member on these very
    images, which flatters it), `mean_single`, `majority_vote`, `confidence_weighted`, and `oracle`
    (some member is right), all as fractions.
    """
    names = sorted(classes)
    rows = []
    for run in range(min(len(np.atleast_2d(classes[name])) for name in names)):
        said = np.stack([np.atleast_2d(classes[name])[run] for name in names])
        sure = np.stack([np.atleast_2d(confidence[name])[run] for name in names])
        right = said == labels
        rows.append(
            {
                "run": run,
                "best_single": float(right.mean(axis=1).max()),
                "mean_single": float(right.mean()),
                "majority_vote": float(np.mean(majority_vote(said, sure) == labels)),
                "confidence_weighted": float(np.mean(confidence_weighted(said, sure) == labels)),
                "oracle": float(np.mean(right.any(axis=0))),
            }
        )
    return pd.DataFrame(rows)


def calibration_bins(
    confidence: Sequence[float] | Array, hit: Sequence[bool] | Hits, bins: int = BINS
) -> pd.DataFrame:
    """One row a bin of confidence, of equal width, closed above: what a reliability diagram shows.

    Both arguments are (images,): the confidence in the predicted class, and whether it is right.
    Columns: `low`, `high`, `images`, mean `confidence` and `accuracy` (both NaN in an empty bin).
    """
    sure, right = np.asarray(confidence, dtype=float), np.asarray(hit, dtype=float)
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    number = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        return pd.DataFrame(
            {
                "low": np.arange(bins) / bins,
                "high": np.arange(1, bins + 1) / bins,
                "images": number,
                "confidence": np.bincount(place, sure, bins) / number,
                "accuracy": np.bincount(place, right, bins) / number,
            }
        )


def calibration_error(bins: pd.DataFrame) -> float:
    """Expected calibration error of `calibration_bins`: mean gap, weighted by images."""
    filled = bins[bins["images"] > 0]
    gap = (filled["confidence"] - filled["accuracy"]).abs()
    return float((gap * filled["images"]).sum() / filled["images"].sum())
