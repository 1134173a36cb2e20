"""What a method says of one backbone, without what differs from one backbone to the next."""

from __future__ import annotations

import re

ANY = r"\w+"  # family, where it is not known


def general(remark: str, method: str, family: str = ANY) -> str:
    """A remark without the names of method, family and module, so that it stands once.

    Args:
        family: its name, or an expression for it.
    """
    text = re.sub(rf"\b{method}\b(?= )(?! which)", "the method", remark, count=1)
    text = re.sub(rf"(the |this )?family '{family}'", "the family", text)
    text = re.sub(rf"\b{family} backbones", "such backbones", text)
    text = re.sub(rf"(this )?\b{family} backbone\b", "such a backbone", text)
    text = re.sub(r"'[\w.]*\.\w+'( \(\w+\))?", "a layer", text)
    text = re.sub(r"\d+ pixels", "few pixels", text)
    text = re.sub(r"is \d+ x \d+", "is no multiple of it", text)
    if method.startswith("hf_"):  # sizes of tiny layers, in the words of peft
        text = re.sub(r"\d[\d,]*(?![\w=])", "N", text.removeprefix(f"{method}: "))
    return text[:1].upper() + text[1:]
