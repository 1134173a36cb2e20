"""Under which names people keep their splits, in folders and in lists."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "validating", "dev", "development"),
    "test": ("test", "testing", "tst"),
}
ROLE_OF = {word: role for role, words in WORDS.items() for word in words}
# what stands beside such a word and says nothing of what is in it
PLAIN = frozenset(
    (
        *(
            "set",
            "sets",
            "split",
            "part",
            "partition",
            "subset",
            "data",
            "dataset",
            "folder",
            "dir",
        ),
        *("image", "images", "img", "imgs", "picture", "pictures", "pics", "photo", "photos"),
        *("sample", "samples", "example", "examples", "seg", "x", "v", "dir", "the", "is", "for"),
    )
)
# may be val or test: taken for neither, and never for a class beside splits
UNCLEAR = ("eval", "evaluation", "evaluate", "holdout", "heldout", "trainval", "unlabeled")
_GLUED = re.compile(
    f"({'|'.join(sorted(ROLE_OF, key=len, reverse=True))})({'|'.join(sorted(PLAIN))})"
)


def words(name: str) -> list[str]:
    """The words of a name in small letters: "01_TrainSet2" is `["train", "set"]`."""
    text = unicodedata.normalize("NFKC", name)
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).casefold()
    result: list[str] = []
    for word in re.findall(r"[^\W\d_]+", text):
        glued = _GLUED.fullmatch(word)
        result += glued.groups() if glued else (word,)
    return result


def role(name: str) -> str | None:
    """The split that a name stands for: "train", "val" or "test"; `None` for any other name."""
    parts = words(name)
    roles = {ROLE_OF[word] for word in parts if word in ROLE_OF}
    rest = [word for word in parts if word not in ROLE_OF]
    return roles.pop() if len(roles) == 1 and PLAIN.issuperset(rest) else None


def roles(names: Iterable[str]) -> dict[str, str]:
    """The split that each of the names in one folder stands for, without those that stand for none.

    Names that differ in nothing else, such as "asl_train" and "asl_test", are splits too.
    """
    everything = list(names)
    known_roles = {name: known for name in everything if (known := role(name)) is not None}
    alike: dict[tuple[str, ...], dict[str, str]] = {}
    for name in everything:
        parts = words(name)
        roles = [ROLE_OF[word] for word in parts if word in ROLE_OF]
        if name not in known_roles and len(roles) == 1:
            rest = tuple(word for word in parts if word not in ROLE_OF)
            alike.setdefault(rest, {})[name] = roles[0]
    for group in alike.values():
        if {"train", "test"} <= set(group.values()):
            known_roles.update(group)
    return {name: known_roles[name] for name in everything if name in known_roles}


def is_unclear(name: str) -> bool:
    """Whether a name is that of a split, and does not say which."""
    parts = words(name)
    glued = "".join(parts)
    return glued in UNCLEAR or any(
        word in UNCLEAR and PLAIN.issuperset(parts[:i] + parts[i + 1 :])
        for i, word in enumerate(parts)
    )
