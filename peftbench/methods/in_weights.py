"""Methods that change weights by something that folds into them. Registers no method."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from peftbench.backbones.anatomy import Site
from peftbench.methods.base import Attachment, Method, parameters_of

if TYPE_CHECKING:
    from torch import nn

    from peftbench.methods.changes import Change


class InWeights(Method):
    """A method whose changes stand beside layers, or inside weights that are never called."""

    def merge(self, model: nn.Module) -> nn.Module:
        from peftbench.methods import surgery

        surgery.bake_deltas(model)
        return model


def changed(
    backbone: nn.Module, sites: Iterable[Site], make: Callable[[Site], Change]
) -> Attachment:
    """Give the layer of each site its own `make(site)`; all that is in these trains."""
    from peftbench.methods import surgery

    changes, notes = surgery.add_deltas(backbone, sites, make)
    return Attachment(
        backbone,
        parameters_of(*changes.values()),
        touched=tuple(changes),
        train_modules=tuple(changes.values()),
        notes=notes,
    )
