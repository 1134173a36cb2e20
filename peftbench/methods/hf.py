"""The weight tuners of Hugging Face `peft` as methods `hf_NAME`, each an entry of a table.

`hf_tuners.toml` says of each what it is called, where it is from, its settings with defaults for
vision, and which layers it takes. A tuner that `peft` gets later needs an entry there and no code.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.metadata
import importlib.util
import operator
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from peftbench.backbones.anatomy import Anatomy, Kind, Role, Site
from peftbench.errors import ConfigError, Unsupported
from peftbench.methods.base import (
    Attachment,
    Method,
    MethodCard,
    Preparation,
    TrainingImages,
    register_method,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

TABLE = Path(__file__).with_name("hf_tuners.toml")
INSTALL = "pip install 'peftbench[hf-peft]'"
AUTO = "auto"  # what `targets` says by default
# target -> role of its sites, by the names that lora has
TARGETS: Mapping[str, Role] = {
    "qkv": Role.ATTN_IN,  # the projections of attention, fused or apart
    "proj": Role.ATTN_OUT,
    "fc1": Role.MLP_IN,
    "fc2": Role.MLP_OUT,
    "conv": Role.SPATIAL_CONV,
    "pointwise": Role.POINT_CONV,
    "norm": Role.NORM,
}
LAYERS = {Kind.LINEAR: "linear", Kind.CONV: "conv", Kind.NORM: "norm"}  # as the table says them


@dataclass(frozen=True)
class TunerEntry:
    """What the table says of one method."""

    tuner: str  # of `peft.PeftType`
    title: str
    paper: str
    section: str
    summary: str
    settings: Mapping[str, Any]  # hyper-parameters of the method
    parameters: str  # that train, of each target: a formula of `inputs`, `outputs` and the settings
    shared: str = "0"  # that all targets have together
    group: str = "0"  # that targets of one last name and shape have together
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # what the name means
    schedule: Mapping[str, float] = dataclasses.field(default_factory=dict)  # shares of all steps
    targets: tuple[str, ...] = ("qkv",)  # where there is attention
    elsewhere: tuple[tuple[str, ...], ...] = (("fc1", "fc2"), ("pointwise",), ("conv",))
    layers: tuple[str, ...] = ("linear",)
    identity: bool = True  # the function is the pretrained one before the first step
    merges: bool = True
    prepared: bool = False
    derived: bool = False  # holds decompositions of weights, which machines find differently
    deviations: tuple[str, ...] = ()

    @property
    def card(self) -> MethodCard:
        """What the entry promises, for the pages and the tests of methods."""
        return MethodCard(
            title=self.title,
            summary=self.summary,
            paper=self.paper,
            section=self.section,
            reference=f"huggingface/peft@v0.21.2 {self.tuner}",
            identity_at_init=self.identity,
            mergeable=self.merges,
            prepared=self.prepared,
            deviations=self.deviations,
        )


@cache
def peft_version() -> str:
    """Version of the installed `peft`, which is not imported; empty where there is none."""
    try:
        return importlib.metadata.version("peft")
    except importlib.metadata.PackageNotFoundError:
        return ""


@dataclass(frozen=True)
class HuggingFaceTuner(Method):
    """A tuner of `peft` on modules that are chosen by their role."""

    entry: ClassVar[TunerEntry]
    targets: tuple[str, ...] = (AUTO,)  # auto: what the table says for this kind of backbone
    options: tuple[str, ...] = ()  # "key:value" for any other field of the tuner's configuration

    def validate(self) -> None:
        known = ", ".join(TARGETS)
        self.require(bool(self.targets), f"targets is empty; choose among {known}.")
        unknown = [t for t in self.targets if t not in TARGETS and self.targets != (AUTO,)]
        self.require(not unknown, f"unknown targets {unknown}; choose among {known}.")
        self.require(len(set(self.targets)) == len(self.targets), "targets name one weight twice.")
        wrong = [text for text in self.options if not text.partition(":")[1]]
        self.require(not wrong, f"options {wrong} are not of the form key:value.")

    def check_installed(self) -> None:
        if not peft_version():
            raise ConfigError(
                f"method={self.name} needs the package peft, which is not installed. Run: {INSTALL}"
            )

    def identity(self) -> dict[str, Any]:
        """Beside name, version and hyper-parameters: the tuner, its settings, and whose code."""
        return {
            **super().identity(),
            "tuner": self.entry.tuner,
            "peft": peft_version(),
            "fixed": dict(self.entry.fixed),
            "schedule": dict(self.entry.schedule),
        }

    def settings(self) -> dict[str, Any]:
        """Fields of the tuner's configuration by name, with those that `options` gives as text."""
        own = {name: getattr(self, name) for name in self.entry.settings}
        given = dict(text.partition(":")[::2] for text in self.options)
        return {**own, **self.entry.fixed, **given}

    def resolved(self, anatomy: Anatomy) -> tuple[str, ...]:
        """The targets, with `auto` replaced by what it means on this backbone."""
        if self.targets != (AUTO,):
            return self.targets
        if anatomy.where(Role.ATTN_IN):
            return self.entry.targets
        for choice in self.entry.elsewhere:
            if any(anatomy.where(TARGETS[target]) for target in choice):
                return choice
        return self.entry.targets

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """Sites of the targets, in depth order; a module with two roles counts once."""
        found = anatomy.where(*(TARGETS[target] for target in self.resolved(anatomy)))
        return tuple({site.path: site for site in found}.values())

    def check(self, anatomy: Anatomy) -> None:
        present = [t for t, role in TARGETS.items() if anatomy.where(role)]
        absent = [t for t in self.resolved(anatomy) if t not in present]
        if absent:
            advice = (
                f"They have {', '.join(present)}: set method.targets."
                if present
                else "Use method=bias, norm or full."
            )
            raise Unsupported(
                f"{self.name} targets {', '.join(absent)}, which {anatomy.family} backbones do not "
                f"have. {advice}"
            )
        taken = self.entry.layers
        for site in self.sites(anatomy):
            kind = LAYERS.get(site.kind, str(site.kind))
            if kind not in taken and not (
                "pointwise" in taken and site.kind is Kind.CONV and site.role is not _SPATIAL
            ):
                raise Unsupported(
                    f"{self.name} takes layers of the kind {' and '.join(taken)}, and "
                    f"{site.path!r} of {anatomy.family} backbones is {_NAMED.get(kind, kind)}. "
                    "Use method=lora, or other targets: method.targets."
                )
            if not site.called:
                raise Unsupported(
                    f"{self.name} replaces modules, but {anatomy.family} backbones read the weight "
                    f"of {site.path!r} and never call it. Use method=lora, or other targets: "
                    "method.targets=[proj,fc1,fc2]."
                )

    def rehearse(self, backbone: nn.Module, anatomy: Anatomy) -> None:
        from peftbench.methods.hugging_face import trial

        self.check_installed()
        trial.rehearse(self, backbone, anatomy)

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from peftbench.methods.hugging_face import adapter

        return adapter.attach(self, backbone, anatomy, generator)

    def prepare(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        images: TrainingImages,
        generator: torch.Generator,
    ) -> Preparation:
        from peftbench.methods.hugging_face import adapter

        return adapter.directions(self, backbone, anatomy, images, generator)

    def attach_prepared(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        generator: torch.Generator,
        prepared: Preparation,
    ) -> Attachment:
        from peftbench.methods.hugging_face import adapter

        return adapter.attach(self, backbone, anatomy, generator, prepared)

    def merge(self, model: nn.Module) -> nn.Module:
        if not self.entry.merges:
            return super().merge(model)
        from peftbench.methods.hugging_face import adapter

        return adapter.folded(model, self.name)

    def expected_params(self, anatomy: Anatomy) -> int:
        """By the formulas of the table, for a configuration that `options` leaves as it is."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.entry.settings}
        sites = self.sites(anatomy)
        values["targets"] = len(sites)
        total, seen = computed(self.entry.shared, values), set()
        for site in sites:
            of_site = {
                **values,
                "inputs": site.fan_in or 0,
                "outputs": site.width,
                "own": site.num_params,
                "bias": int(site.has_bias),
                "feeds_back": site.role is Role.MLP_OUT,  # the second layer of an MLP
            }
            total += computed(self.entry.parameters, of_site)
            group = (site.path.rpartition(".")[2], site.fan_in, site.width)
            total += 0 if group in seen else computed(self.entry.group, of_site)
            seen.add(group)
        return total


_SPATIAL = Role.SPATIAL_CONV
_NAMED = {"linear": "a linear layer", "conv": "a convolution", "norm": "a norm"}
_OPERATIONS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Lt: operator.lt,
    ast.Gt: operator.gt,
}


def _divisor(number: int) -> int:
    """The largest divisor of a number that is not above its square root."""
    return max(d for d in range(1, int(number**0.5) + 1) if number % d == 0)


_FUNCTIONS: Mapping[str, Callable[..., int]] = {
    "min": min,
    "max": max,
    "int": int,
    "divisor": _divisor,
}


def computed(formula: str, values: Mapping[str, Any]) -> int:
    """The value of a formula of whole numbers: names, + - * //, comparisons, a if b else c.

    Raises:
        ValueError: it has something else in it.
    """

    def value(node: ast.AST) -> Any:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=name) if name in values:
                return values[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
                return _OPERATIONS[type(op)](value(left), value(right))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _OPERATIONS:
                return _OPERATIONS[type(op)](value(left), value(right))
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return value(body) if value(test) else value(orelse)
            case ast.Call(func=ast.Name(id=name), args=args) if name in _FUNCTIONS:
                return _FUNCTIONS[name](*map(value, args))
        raise ValueError(f"{formula!r} is no formula of a count")

    return int(value(ast.parse(formula, mode="eval").body))


def register_tuners(table: Path) -> None:
    """Register each entry of a TOML file as method `hf_NAME`; a package may bring its own.

    Raises:
        ConfigError: the file cannot be read, or an entry has unknown keys or lacks one.
    """
    try:
        entries = tomllib.loads(table.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ConfigError(f"{table} is no table of tuners: {e}. Correct the file.") from e
    for name, raw in entries.items():
        try:
            entry = TunerEntry(**{key: _frozen(value) for key, value in raw.items()})
        except TypeError as e:
            raise ConfigError(f"{table}: {name}: {e}. Correct the file.") from e
        _register(name, entry)


def _register(name: str, entry: TunerEntry) -> None:
    fields = [(key, type(value), value) for key, value in entry.settings.items()]
    kind = dataclasses.make_dataclass(
        f"HuggingFace_{name}",
        fields,
        bases=(HuggingFaceTuner,),
        namespace={
            "__doc__": entry.summary,
            "__module__": __name__,
            "card": entry.card,
            "entry": entry,
        },
        frozen=True,
    )
    globals()[kind.__name__] = kind  # where copies between processes look for it
    register_method(f"hf_{name}")(kind)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


register_tuners(TABLE)
