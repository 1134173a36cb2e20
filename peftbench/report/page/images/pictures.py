"""Pictures of a data set on this machine: of mistakes, and what the model sees of some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from peftbench.data.images import file_digest, to_square
from peftbench.errors import PeftbenchError
from peftbench.report.page.images import counting, thumbnails
from peftbench.report.page.images.tested import Said
from peftbench.report.page.images.thumbnails import Room
from peftbench.spec import Preprocessing
from peftbench.untrusted import printable

if TYPE_CHECKING:
    from peftbench.data.listing import Listing

OF_A_CELL = 12  # pictures of one confusion
OF_A_CLASS = 3  # that were told right
SAMPLES = 8
HOW = {"squash": "squashed to a square", "crop": "the square in the middle"}


@dataclass(frozen=True)
class CheckedPictures:
    """Opens pictures of a listing, each only while its file has the bytes that were listed."""

    listing: Listing
    names: Sequence[str]  # of N test images, which may be those of several folds
    digests: Sequence[str]  # N

    def test(self, number: int) -> Image.Image | None:
        """The picture of a number among the test images; `None` where it is another by now."""
        return self.open(self.names[number], self.digests[number])

    def open(self, name: str, digest: str) -> Image.Image | None:
        """A picture by its name; `DataError` or `OSError` where it cannot be read."""
        home = self.listing.home
        path = home.pictures.path(name) if home is not None else None
        if self.listing.open is None or (path is not None and file_digest(path) != digest):
            return None
        return self.listing.open(name)


def mistakes(pictures: CheckedPictures, said: Sequence[Said], room: Room) -> dict[str, str]:
    """Pictures by the number of the image, as many as there is room for.

    Those that the first of the runs mistook come first, most confident ones before others, then
    some of each class that it told right, and then the mistakes of other runs.

    Args:
        said: of each run, or of all folds together, the best first.
    """
    wanted: list[int] = []
    for place, run in enumerate(said):
        wrong = run.classes != run.labels
        own = counting.by_confidence(run.confidence, wrong)[:OF_A_CELL]
        own += counting.in_cells(run.labels, run.classes, run.confidence, OF_A_CELL)
        if place == 0:
            own += _few_of_each(counting.by_confidence(run.confidence, ~wrong), run.labels)
        wanted += run.places[own].tolist()
    made = thumbnails.thumbnails(wanted, pictures.test, room)
    return {str(number): uri for number, uri in sorted(made.items())}


def _few_of_each(numbers: Sequence[int], labels: np.ndarray) -> list[int]:
    taken: dict[int, int] = {}
    result = []
    for number in numbers:
        label = int(labels[number])
        taken[label] = taken.get(label, 0) + 1
        if taken[label] <= OF_A_CLASS:
            result.append(number)
    return result


def samples(pictures: CheckedPictures, preprocessing: Preprocessing, room: Room) -> dict[str, Any]:
    """Some training pictures beside the squares that the model sees of them when it predicts."""
    train, items = pictures.listing.train, []
    firsts = [train.labels.index(label) for label in sorted(set(train.labels))]
    for place in thumbnails.spread(len(firsts), SAMPLES):
        number = firsts[place]
        name = train.names[number]
        try:
            picture = pictures.open(name, train.digests[number])
            if picture is None:
                continue
            square = Image.fromarray(to_square(picture, preprocessing))
        except (PeftbenchError, OSError, ValueError):  # broken, or a size of another version
            continue
        whole, seen = thumbnails.thumbnail(picture), thumbnails.square(square)
        if not (room.take(whole) and room.take(seen)):
            break
        shown = {"name": printable(name), "class": train.labels[number]}
        items.append({**shown, "whole": whole, "seen": seen})
    how = HOW.get(preprocessing.resize, preprocessing.resize)
    return {"size": preprocessing.size, "how": how, "items": items}
