"""The classifier of a timm model: which of its layers make the logits.

Most models have one linear layer, which `get_classifier` returns. Others return a module around it
(a norm, a hidden layer: these belong to the features), a 1 x 1 convolution, or several, as models
with a head for distillation or one for each branch do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from peftbench.backbones.anatomy import Head
from peftbench.backbones.copies import weightless_copy
from peftbench.errors import ConfigError, Unsupported

TRIED = (3, 5)  # numbers of classes that show which layers have an output for each class


def heads_of(backbone: nn.Module) -> tuple[Head, ...]:
    """The layers that make the logits, in the order of the modules; the first is never auxiliary.

    What `get_classifier` returns is taken as it is where it is one linear layer or 1 x 1
    convolution. Otherwise a copy shows which layers change with the number of classes; and so it
    does for a linear layer beside the classifier with as many outputs, which is auxiliary.

    Raises:
        Unsupported: there is no classifier.
        ConfigError: the model gives two outputs while it trains, as for distillation.
    """
    named = _named(backbone)
    modules = dict(backbone.named_modules())
    for path, module in modules.items():
        if getattr(module, "distilled_training", False):
            raise ConfigError(
                f"this {type(backbone).__name__} gives the logits of its two classifiers apart "
                f"while it trains: distilled_training of {path or 'the model'} is True. Set it to "
                "False first."
            )
    if len(named) == 1 and _is_linear(modules[named[0]]):
        beside = _beside(backbone, modules[named[0]])
        sized = _sized_by_classes(backbone) if beside else []
        own = named
        auxiliary = [path for path in beside if path in sized]
    else:
        sized = _sized_by_classes(backbone)
        own = [path for path in sized if _is_inside(path, named)] or _last_linear(backbone, named)
        auxiliary = [path for path in sized if not _is_inside(path, named)]
    return (
        *(_head(path, modules[path]) for path in own),
        *(_head(path, modules[path], auxiliary=True) for path in auxiliary),
    )


def prefixes_of(backbone: nn.Module) -> tuple[str, ...]:
    """What the names of the classifier's tensors begin with: its paths, with a dot behind each."""
    return prefixes(heads_of(backbone))


def prefixes(heads: tuple[Head, ...]) -> tuple[str, ...]:
    """The paths of `heads`, with a dot behind each."""
    return tuple(f"{head.path}." for head in heads)


def has_none(model: nn.Module) -> bool:
    """Whether a timm model was built with `num_classes=0`: what it returns has no parameters."""
    found = list(returned_classifiers(model))
    return bool(found) and not any(True for each in found for _ in each.parameters())


def returned_classifiers(backbone: nn.Module) -> Iterator[nn.Module]:
    """The modules that `get_classifier` returns, one by one."""
    get_classifier: Callable[[], object] | None = getattr(backbone, "get_classifier", None)
    todo = [get_classifier()] if get_classifier else []
    while todo:
        found = todo.pop(0)
        if isinstance(found, nn.Module):
            yield found
        elif isinstance(found, tuple | list):
            todo = [*found, *todo]


def _named(backbone: nn.Module) -> list[str]:
    """Paths of the modules that timm's `get_classifier` returns."""
    own = f"{type(backbone).__name__} has no single classifier module to replace"
    found = list(returned_classifiers(backbone))
    if not found:
        raise Unsupported(f"{own}: it is no model of timm, whose get_classifier would name it.")
    if has_none(backbone):
        raise Unsupported(f"{own}: it was built with num_classes=0. Build it with num_classes > 0.")
    wanted = {id(each) for each in found}
    paths = [path for path, module in backbone.named_modules() if path and id(module) in wanted]
    if not paths:
        kind = type(found[0]).__name__
        raise Unsupported(
            f"{own}: its get_classifier returns a {kind} that is none of its modules. Build the "
            "architecture with timm.create_model."
        )
    return paths


def _is_linear(module: nn.Module | None) -> bool:
    """Whether a module is a linear layer or a 1 x 1 convolution."""
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear)


def _is_inside(path: str, around: list[str]) -> bool:
    return any(f"{path}.".startswith(f"{outer}.") for outer in around)


def _sized_by_classes(backbone: nn.Module) -> list[str]:
    """Paths of the linear layers whose shape follows the number of classes.

    So is one that a reset removes, as RepViT's second, if it has as many outputs. Empty where the
    model cannot be copied or does not know `reset_classifier`.
    """
    shapes = []
    try:
        copied = weightless_copy(backbone)
        with torch.random.fork_rng(devices=[]):
            for number in TRIED:
                copied.reset_classifier(number)  # type: ignore[operator]
                shapes.append({name: p.shape for name, p in copied.named_parameters()})
    except Exception:  # of somebody's class, whatever it does when it is copied or reset
        return []
    few, many = shapes
    outputs, removed = {}, []
    for path, module in backbone.named_modules():
        if _is_linear(module):
            weight = module.get_parameter("weight")
            name = f"{path}.weight"
            if name not in many:
                removed.append((path, len(weight)))
            elif few.get(name) != many[name]:
                outputs[path] = len(weight)
    found = {*outputs, *(path for path, count in removed if count in outputs.values())}
    return [path for path, _ in backbone.named_modules() if path in found]


def _beside(backbone: nn.Module, classifier: nn.Module) -> list[str]:
    """Linear layers at the top of the model with as many outputs as its classifier has."""
    outputs = classifier.get_parameter("weight").shape[0]
    return [
        name
        for name, child in backbone.named_children()
        if child is not classifier
        and isinstance(child, nn.Linear)
        and child.out_features == outputs
    ]


def _last_linear(backbone: nn.Module, named: list[str]) -> list[str]:
    """Of each of `named` the last linear layer in it, or itself where there is none."""
    found = []
    for path in named:
        inside = backbone.get_submodule(path).named_modules(prefix=path)
        linear = [inner for inner, module in inside if _is_linear(module)]
        found.append(linear[-1] if linear else path)
    return found


def _head(path: str, module: nn.Module, auxiliary: bool = False) -> Head:
    if not _is_linear(module):
        return Head(path, 0, auxiliary=auxiliary)
    on_maps = isinstance(module, nn.Conv2d)
    width = module.in_channels if isinstance(module, nn.Conv2d) else module.in_features
    assert isinstance(width, int)
    return Head(path, width, on_maps, auxiliary)
