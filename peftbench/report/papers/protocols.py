"""What a protocol declares, read from its files, and how a run differs from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peftbench.protocols import rules_of, shipped_entries
from peftbench.registry import unknown_name
from peftbench.results.settings import settings_text
from peftbench.spec import Recipe

PIXELS = ("normalisation", "resize", "interpolation")
# settings of a run that a protocol fixes, beside the weights
FIXED = (*PIXELS, "image_size", "selection", "recipe", "epochs")


@dataclass(frozen=True)
class DeclaredProtocol:
    """A protocol as far as a reader must know it to compare two numbers."""

    name: str
    seeds: tuple[int, ...]
    average: str
    parameters: str
    selection: str
    settings: Mapping[str, str]  # the others of `FIXED`, spelled as in the table of runs
    by_suite: Mapping[str, Mapping[str, str]]  # what a suite changes of them

    def of(self, suite: str) -> Mapping[str, str]:
        """What runs on a data set of `suite` are declared with."""
        return {
            **self.settings,
            "selection": self.selection,
            **self.by_suite.get(suite.partition("_")[0], {}),  # fewshot_4shot is of fewshot
        }


def declared(name: str) -> DeclaredProtocol:
    """The protocol called `name`; `UnknownName` where `conf/protocol` has no such file."""
    known = shipped_entries("protocol")
    if name not in known:
        raise unknown_name("protocol", name, known)
    entry = known[name]
    rules = rules_of(name, entry)
    trained = shipped_entries("recipe").get(rules.recipe, {})
    image_size = entry.get("backbone", {}).get("image_size")
    settings = {
        **{key: str(getattr(rules.preprocessing, key)) for key in PIXELS},
        "image_size": "" if image_size is None else str(image_size),
        "recipe": str(trained.get("name", rules.recipe)),
        "epochs": str(trained.get("epochs", Recipe.epochs)),
    }
    by_suite = {
        suite: {
            **{key: str(v) for key, v in changed.get("preprocessing", {}).items()},
            **{key: str(v) for key, v in changed.get("recipe", {}).items() if key == "epochs"},
        }
        for suite, changed in shipped_entries(f"suite/{name}").items()
    }
    return DeclaredProtocol(
        name=name,
        seeds=rules.reporting.seeds,
        average=rules.reporting.average,
        parameters=rules.reporting.parameters,
        selection=rules.selection.rule,
        settings=settings,
        by_suite=by_suite,
    )


def differences(
    paper: DeclaredProtocol, protocol: str, settings: Mapping[str, str], suite: str
) -> tuple[str, ...]:
    """What of `FIXED` a run did otherwise, a line each; empty where it followed the protocol.

    `settings` are those of the run, spelled as in the table of runs.
    """
    lines = [] if protocol == paper.name else [f"protocol {protocol}, not {paper.name}"]
    wanted = paper.of(suite)
    lines += [
        f"{key} {settings.get(key, '') or 'of the checkpoint'}, "
        f"not {wanted[key] or 'of the checkpoint'}"
        for key in FIXED
        if settings.get(key, "") != wanted[key]
    ]
    return tuple(lines)


def describe(paper: DeclaredProtocol) -> str:
    """One line of what is declared."""
    settings = settings_text(
        {key: value for key, value in paper.settings.items() if value}
        | {"selection": paper.selection, "seeds": list(paper.seeds)}
    )
    return f"{paper.name}: {settings}, average={paper.average}, parameters={paper.parameters}"
