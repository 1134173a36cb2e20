"""Which kinds of support tensors a layer has; loading it needs no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

LETTERS = "abcde"
# what each of A to E may be; "lora" is of the full rank, "lora_2" takes the first two
KINDS = {
    "a": ("lora", "vector", "constant", "none"),
    "b": ("lora", "vector", "constant", "none"),
    "c": ("lora", "vector", "none"),
    "d": ("vector", "constant", "none"),
    "e": ("vector", "constant", "none"),
}
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class SupportPath:
    """The kinds of A, B, C, D and E of one layer, in this order."""

    kinds: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, rank: int) -> SupportPath:
        """Of text such as lora/vector/none/constant/none.

        Raises:
            ValueError: it is no path of supports of this rank.
        """
        kinds = tuple(text.split("/"))
        if len(kinds) != len(LETTERS):
            raise ValueError(f"{text!r} has {len(kinds)} kinds and not five, of A/B/C/D/E")
        for letter, kind in zip(LETTERS, kinds, strict=True):
            low = re.fullmatch(r"lora_([1-9]\d*)", kind)
            if low and "lora" in KINDS[letter] and int(low[1]) <= rank:
                continue
            if kind not in KINDS[letter]:
                known = ", ".join(KINDS[letter])
                raise ValueError(f"{letter.upper()} of {text!r} is {kind!r} and none of {known}")
        return cls(kinds)

    def kind(self, letter: str) -> str:
        """The kind of a support, "lora" whatever its rank."""
        return self.kinds[LETTERS.index(letter)].partition("_")[0]

    def rank(self, letter: str, most: int) -> int:
        """The rank of a support of the kind "lora"."""
        chosen = self.kinds[LETTERS.index(letter)].partition("_")[2]
        return int(chosen) if chosen else most

    def shapes(self, width: int, fan_in: int, has_bias: bool, most: int) -> Shapes:
        """Of the tensors of this path, for a layer of `fan_in` inputs and `width` outputs.

        A layer without a bias has none of C, D and E.
        """
        shapes: Shapes = {}
        sides = {"a": (width, fan_in), "b": (width, fan_in)} | (
            {"c": (fan_in, 1)} if has_bias else {}
        )
        for letter, (rows, columns) in sides.items():
            kind, rank = self.kind(letter), self.rank(letter, most)
            if kind == "lora":
                shapes |= {f"{letter}_down": (rows, rank), f"{letter}_up": (rank, columns)}
            elif kind != "none":
                shapes[f"{letter}_down"] = (rows, 1) if kind == "vector" else (1, 1)
        for letter in "de" if has_bias else "":
            if self.kind(letter) != "none":
                shapes[letter] = (width,) if self.kind(letter) == "vector" else (1,)
        return shapes


FULL = "lora/lora/lora/vector/vector"  # the path that takes most of everything
EVERYTHING = SupportPath(tuple(FULL.split("/")))
