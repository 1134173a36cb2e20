"""Weights of a local file into a model: every tensor has a place, a known reason to stay out, or
is named in the refusal.

The file's tensors are tried under each prefix that they share, as they are, in the layouts of other
projects, and through timm's converter. What the converter drops without a word is found out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from peftbench.backbones.checkpoints import files as checkpoint
from peftbench.backbones.checkpoints import layouts, leftovers
from peftbench.backbones.checkpoints.conversion import Needs, convert
from peftbench.backbones.checkpoints.files import StoredEntry
from peftbench.backbones.checkpoints.npz import read_npz_into
from peftbench.errors import WeightsError
from peftbench.untrusted import printable

MOST_TRANSLATED = 100  # prefixes
ENOUGH = 0.3  # of the tensors that a model needs lie under a prefix that is worth a try
SHOWN = 3  # names in a message
# which of several networks in one file is meant, by the component in which their names differ:
# averages, then the network, then the one that a self-supervised method hands on
RANKS = {
    **dict.fromkeys(("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema"), 0),
    **dict.fromkeys(("averaged_model", "module_ema", "params_ema"), 0),
    **dict.fromkeys(("state_dict", "model", "module", "net", "network", "params"), 1),
    **dict.fromkeys(("online_encoder", "online_network", "model_state_dict"), 1),
    **dict.fromkeys(("teacher", "base_encoder", "encoder_q", "query_encoder"), 2),
    **dict.fromkeys(("target_encoder", "vision_tower", "vision_model", "visual"), 2),
    **dict.fromkeys(("encoder", "student", "backbone"), 3),
    **dict.fromkeys(("momentum_encoder", "encoder_k", "key_encoder", "target_network"), 4),
    **dict.fromkeys(("student_ema", "teacher_ema", "momentum_network"), 4),
}


@dataclass(frozen=True)
class FittedWeights:
    """The tensors of a file that fill a model."""

    state: Mapping[str, Tensor]  # under the model's names
    notes: tuple[str, ...]  # what stayed out, and what was resampled


@dataclass(frozen=True)
class _Attempt:
    prefix: str
    state: dict[str, Tensor]
    used: frozenset[str]  # names in the file
    left: tuple[str, ...]  # names in the file that reached nothing
    project: str
    extra: Mapping[str, Tensor]  # what is left, by its name behind the prefix, as far as known


def fit(path: Path, model: nn.Module) -> FittedWeights:
    """The weights of `path` for `model`.

    Raises:
        WeightsError: no reading of the file fills the model; more than one does and none is meant;
            tensors have no place; or a number is not finite.
    """
    if _is_npz(path):
        return _fit_npz(path, model)
    table = checkpoint.read(path)
    needs = Needs.of(model)
    tensors = _Tensors(path, table)
    attempts = _attempts(table, tensors, model, needs)
    fitting = [a for a in attempts if needs.filled_by(a.state)]
    if not fitting:
        raise _misfit(path, table, attempts, needs)
    chosen = _choose(path, fitting)
    state = {n: t for n, t in chosen.state.items() if n in needs.tensors}
    _check_finite(path, {n: t for n, t in state.items() if n in set(needs.required)})
    notes = [_others(path, chosen, fitting, needs, tensors)]
    notes += _resampled(path, chosen, tensors, needs)
    notes += _activation(path, chosen, model, needs)
    return FittedWeights(state, tuple(note for note in notes if note))


class _Tensors(dict[str, Tensor]):
    """Tensors of a file, each read once."""

    def __init__(self, path: Path, table: Mapping[str, StoredEntry]) -> None:
        super().__init__()
        self.path, self.table = path, table

    def __missing__(self, name: str) -> Tensor:
        self[name] = checkpoint.read_entry(self.path, name, self.table[name])
        return self[name]


# ------------------------------------------------------------------- attempts


def _attempts(
    table: Mapping[str, StoredEntry], tensors: _Tensors, model: nn.Module, needs: Needs
) -> list[_Attempt]:
    """Readings of the file: those that fit as they are; where none does, all that translate."""
    below: dict[str, list[str]] = {"": list(table)}
    for name in table:
        for dot in re.finditer(r"\.", name):
            below.setdefault(name[: dot.end()], []).append(name)
    least = max(2, round(ENOUGH * len(needs.required)))
    below = {p: names for p, names in below.items() if not p or len(names) >= least}
    native = []
    for prefix, names in below.items():
        inside = {n.removeprefix(prefix): table[n] for n in names}
        if all(
            n in inside and inside[n].shape == needs.tensors[n].shape for n in needs.required
        ) and all(inside[n].shape == t.shape for n, t in needs.tensors.items() if n in inside):
            state = {n: tensors[prefix + n] for n in needs.tensors if n in inside}
            used = frozenset(prefix + n for n in state)
            left = tuple(
                prefix + n
                for n in inside
                if n not in needs.tensors and not n.startswith(needs.head)
            )
            extra = {n.removeprefix(prefix): tensors[n] for n in left if _small(table[n])}
            native.append(_Attempt(prefix, state, used, left, "", extra))
    if native:
        return native
    fullest = sorted(below, key=lambda p: -len(below[p]))[:MOST_TRANSLATED]
    prefixes = [p for p in below if p in set(fullest)]
    return [_translated(p, below[p], tensors, model, needs) for p in prefixes]


def _translated(
    prefix: str,
    inside: list[str],
    tensors: _Tensors,
    model: nn.Module,
    needs: Needs,
) -> _Attempt:
    """What lies under `prefix`, in timm's names."""
    names = [n.removeprefix(prefix) for n in inside]
    layout = layouts.recognise(names)
    plausible = layout is not None or _plausible(names, needs)
    if not plausible:
        return _Attempt(prefix, {}, frozenset(), (), "", {})
    known = [n for n in names if not _training(prefix + n)]
    state = {n: tensors[prefix + n] for n in known}
    outside: list[str] = []
    if layout is not None:
        state, outside = layouts.translate(layout, state, needs.tensors)
        outside = [prefix + n for n in outside]
    state = _gammas(state, needs.tensors)
    converted, dropped = convert(state, model, needs)
    strangers = [n for n in dropped if n in state]
    left = [*outside, *(prefix + n for n in strangers)]
    used = frozenset(prefix + n for n in known if prefix + n not in set(left))
    extra = {n: state[n] for n in strangers}
    project = layout.project if layout else ""
    return _Attempt(prefix, converted, used, tuple(left), project, extra)


def _small(entry: StoredEntry) -> bool:
    """Whether a tensor could be a counter or a bias."""
    return len(entry.shape) <= 1


def _plausible(names: Iterable[str], needs: Needs) -> bool:
    """Whether timm's converter could make something of these names."""
    templates = {checkpoint.template(n) for n in needs.required}
    own = sum(checkpoint.template(n) in templates for n in names)
    return own >= ENOUGH * len(needs.required) or any(
        re.match(r"(module\.)?(visual|vision_|image_encoder|beit3|radio_model|preprocessor)", n)
        or re.match(r"(stages|downsample_layers|features|layers|trunk|blocks|conv1|stem)\b", n)
        for n in names
    )


def _training(name: str) -> bool:
    return leftovers.part(name) == "the training's own state"


def _gammas(state: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """LayerScale under DeiT III's names, where the model has it under timm's."""
    renamed = {}
    for name, tensor in state.items():
        other = re.sub(r"\bgamma_([12])$", r"ls\1.gamma", name)
        renamed[other if name not in own and other in own and other not in state else name] = tensor
    return renamed


# ------------------------------------------------------------------- the choice


def _choose(path: Path, fitting: list[_Attempt]) -> _Attempt:
    """The reading that is meant: of two networks, the one that their names rank first."""
    best = fitting[0]
    for other in fitting[1:]:
        if other.used == best.used or _equal(best, other):
            # the same tensors twice: the longer prefix says better what is the network
            best = other if len(other.left) < len(best.left) else best
            continue
        order = _order(best.prefix, other.prefix)
        if order is None:
            raise WeightsError(
                f"{printable(str(path))} holds two networks that fit, under "
                f"{_quoted(best.prefix)} and {_quoted(other.prefix)}. Save the one that you mean "
                "into a file of its own."
            )
        best = other if order > 0 else best
    return best


def _equal(a: _Attempt, b: _Attempt) -> bool:
    return a.state.keys() == b.state.keys() and all(
        torch.equal(t, b.state[n]) for n, t in a.state.items()
    )


def _order(a: str, b: str) -> int | None:
    """Below 0 where the network under prefix `a` is the one that is meant, above 0 for `b`."""
    first, second = a.split(".")[:-1], b.split(".")[:-1]
    for one, two in zip(first, second, strict=False):
        if one != two:
            ranks = RANKS.get(one), RANKS.get(two)
            if ranks[0] is None or ranks[1] is None or ranks[0] == ranks[1]:
                return None
            return ranks[0] - ranks[1]
    return len(first) - len(second)


def _others(
    path: Path, chosen: _Attempt, fitting: list[_Attempt], needs: Needs, tensors: _Tensors
) -> str:
    """A note about what stayed out.

    Raises:
        WeightsError: a tensor is no known part that may.
    """
    table = tensors.table
    copies = {
        n: a.prefix
        for a in fitting
        if not a.used & chosen.used
        for n in table
        if n in a.used or (a.prefix and n.startswith(a.prefix))
    }
    names = [*chosen.left]
    names += [
        n for n in table if not n.startswith(chosen.prefix) and n not in copies and not _training(n)
    ]
    wrapped = {c for c in chosen.prefix.split(".") if c}
    relative = {n: n.removeprefix(chosen.prefix) for n in names}
    parts, unknown = leftovers.summed(relative.values(), wrapped)
    outside = {n: tensors[n] for n in unknown if n in table and _small(table[n])}
    known = {**outside, **chosen.extra}
    unknown = [n for n in unknown if not _says_nothing(n, known.get(n), needs)]
    if unknown:
        looks = leftovers.looks_like(unknown, needs.tensors)
        raise WeightsError(
            f"{printable(str(path))} holds {len(unknown)} tensor{'s' * (len(unknown) > 1)} that "
            f"{needs.architecture} has no place for: {_listed(unknown)}"
            f"{f' ({looks})' if looks else ''}. Choose the backbone.name that they belong to, "
            "merge them into the weights, or remove them from the file."
        )
    other = sorted({p for n, p in copies.items() if not n.startswith(chosen.prefix)})
    parts += [f"the network under {_quoted(p)}" for p in other[:SHOWN]]
    source = f" (read under {_quoted(chosen.prefix)})" if chosen.prefix else ""
    if chosen.project:
        source += f" (names of {chosen.project})"
    if not parts and not source:
        return ""
    rest = f"left out {'; '.join(parts)}" if parts else "all tensors were taken"
    return printable(f"{path.name}{source}: {rest}")


def _says_nothing(name: str, tensor: Tensor | None, needs: Needs) -> bool:
    """Counters and biases of zeros, which change nothing, and the pool that a name does without."""
    if name.startswith("attn_pool.") and "_gap" in needs.architecture:
        return True
    if tensor is None:
        return False
    if not tensor.is_floating_point():
        return not re.search(r"weight|bias|scale|zero", name.rpartition(".")[2])
    return name.endswith("bias") and not bool(tensor.any())


def _resampled(path: Path, chosen: _Attempt, tensors: _Tensors, needs: Needs) -> list[str]:
    notes = []
    for kind in ("pos_embed", "patch_embed.proj.weight", "relative_position_bias_table"):
        for name, tensor in chosen.state.items():
            given = tensors.table.get(chosen.prefix + name)
            if name.endswith(kind) and given is not None and name in needs.tensors:
                numbers = torch.Size(given.shape).numel()
                if numbers != tensor.numel():
                    notes.append(
                        f"{printable(path.name)}: {name} was resampled from {tuple(given.shape)} "
                        f"to {tuple(tensor.shape)}"
                    )
                    break
    return notes


def _activation(path: Path, chosen: _Attempt, model: nn.Module, needs: Needs) -> list[str]:
    """Where timm's name computes another GELU than the weights were trained with: no file of
    weights says which one it means.
    """
    kinds = {str(m) for n, m in model.named_modules() if n.endswith("mlp.act")}
    project = chosen.project or layouts.guess_project(chosen.used)  # timm's converter may do it
    if "CLIP" not in project or kinds != {str(nn.GELU())}:
        return []
    own = f"{printable(path.name)}: {needs.architecture} computes the exact GELU"
    if "siglip" in needs.architecture:
        return [f"{own}, SigLIP its tanh approximation: features differ by about 1e-4"]
    return [f"{own}; for weights of OpenAI's own CLIP choose the name with quickgelu"]


def _check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    broken = [n for n, t in state.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if broken:
        raise WeightsError(
            f"{printable(str(path))} has NaN or infinity in {len(broken)} "
            f"tensor{'s' * (len(broken) > 1)}: {_listed(broken)}. The training that wrote it "
            "diverged, or the file is damaged; take an earlier checkpoint."
        )


# ------------------------------------------------------------------- refusals


def _misfit(
    path: Path, table: Mapping[str, StoredEntry], attempts: list[_Attempt], needs: Needs
) -> WeightsError:
    """What the file holds, beside what the model needs."""

    def score(attempt: _Attempt) -> int:
        return sum(n in attempt.state for n in needs.required)

    best = max(attempts, key=score)
    state = best.state
    source = printable(str(path))
    absent = [n for n in needs.required if n not in state]
    wrong = [n for n, t in needs.tensors.items() if n in state and state[n].shape != t.shape]
    strangers = [n.removeprefix(best.prefix) for n in best.left]
    _, strangers = leftovers.summed(strangers)
    also = ""
    if strangers and score(best) > len(needs.required) // 2:
        looks = leftovers.looks_like(strangers, needs.tensors)
        also = (
            f" It also holds {len(strangers)} without a place: {_listed(strangers)}"
            f"{f' ({looks})' if looks else ''}."
        )
    if wrong and len(absent) < len(needs.required) // 2:
        name = wrong[0]
        return WeightsError(
            f"{source}: {len(wrong)} tensors have the wrong shape, first {name!r}: found "
            f"{tuple(state[name].shape)}, the model needs {tuple(needs.tensors[name].shape)}.{also}"
            " Choose the backbone.name and backbone.image_size that the weights belong to."
        )
    lacks = (
        f"{source}: {len(absent)} of {len(needs.tensors)} tensors are missing, first {absent[0]!r}."
    )
    if len(absent) > len(needs.required) // 2:
        project = layouts.guess_project(table)
        tops = list(dict.fromkeys(n.partition(".")[0] for n in table))
        kind = f", which looks like {project}" if project else ""
        also = (
            f" The file holds {len(table)} tensors under {_listed(tops)}, such as "
            f"{_listed(list(table))}{kind}; no prefix makes them those of {needs.architecture}."
        )
    return WeightsError(f"{lacks}{also} Choose the backbone.name that the weights belong to.")


def _quoted(prefix: str) -> str:
    return repr(prefix) if prefix else "no prefix"


def _listed(names: list[str]) -> str:
    shown = ", ".join(printable(n[:80]) for n in names[:SHOWN])
    return f"{shown}, ..." if len(names) > SHOWN else shown


# ------------------------------------------------------------------- .npz


def _is_npz(path: Path) -> bool:
    return path.suffix == ".npz"


def _fit_npz(path: Path, model: nn.Module) -> FittedWeights:
    """A file of the original ViT, Mixer and BiT releases, read by timm."""
    load_pretrained = getattr(model, "load_pretrained", None)
    source = printable(str(path))
    if load_pretrained is None:
        raise WeightsError(
            f"{source}: timm reads .npz weights for ViT and Mixer only, not for "
            f"{type(model).__name__}. Convert the file to safetensors."
        )
    try:
        needed = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        unread = read_npz_into(path, load_pretrained, needed)
    except KeyError as e:
        absent = printable(str(e))
        raise WeightsError(
            f"{source} lacks the array {absent}, so it is not for this model."
        ) from e
    except AssertionError as e:
        raise WeightsError(f"{source} holds arrays of other shapes than this model needs.") from e
    except (*checkpoint.READING, TypeError) as e:
        raise checkpoint.corrupt(path, e) from e
    left = [n.replace("/", ".") for n in unread]
    parts, unknown = leftovers.summed(left)
    if unknown:
        raise WeightsError(
            f"{source} holds {len(unknown)} array{'s' * (len(unknown) > 1)} that this model has no "
            f"place for: {_listed(unknown)}. Choose the backbone.name that they belong to."
        )
    needs = Needs.of(model)
    state = {n: t for n, t in model.state_dict().items() if n in needs.tensors}
    _check_finite(path, state)
    return FittedWeights(
        state, (printable(f"{path.name}: left out {'; '.join(parts)}"),) if parts else ()
    )
