"""The runs of a comparison: the same that `peftbench run` makes of the same configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from peftbench.config.build import build
from peftbench.config.choices import choices, config_dir
from peftbench.data import Listing, identify
from peftbench.spec import DatasetSpec, Phase, RunSpec
from peftbench.tasks import TOP1

FOLDS = 5
VAL_FRACTION = 0.2  # of what trains: a tenth of 300 pictures is too few to rank by


@dataclass(frozen=True)
class OwnPictures:
    """Pictures as they were found, and how they are split."""

    splits: tuple[DatasetSpec, ...]  # folds; one alone where test was given
    listing: Listing  # of the first

    @property
    def trained(self) -> int:
        """Pictures that train in a final run of the first split."""
        return len(self.listing.train) + len(self.listing.val)

    @property
    def in_folds(self) -> bool:
        """Whether the splits were drawn here, and can be drawn again."""
        return len(self.splits) > 1


def overrides_of(backbone: str, size: int | None = None, metric: str = TOP1) -> tuple[str, ...]:
    """What `peftbench run` takes for pictures of one's own, but for their place and the method.

    Classes weigh alike in the loss unless top-1 counts, to which large ones matter more.
    """
    chosen = [] if size is None else [f"backbone.image_size={size}"]
    if metric != TOP1:
        chosen += [f"selection.metric={metric}", "recipe.class_weights=balanced"]
    key = "backbone" if backbone in choices("backbone") else "backbone.name"  # any tag of timm
    return ("dataset=folder", f"{key}={backbone}", "recipe=pictures", *chosen)


def compose(where: str, overrides: Sequence[str]) -> RunSpec:
    """The run that these overrides declare on the pictures of a place, which are not read yet.

    Raises:
        ConfigError: a choice or value that there is not.
    """
    from hydra import compose as composed
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import open_dict

    from peftbench.sweep.launchers.register import register

    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = composed("config", list(overrides))
    with open_dict(cfg):
        cfg.pop("hydra", None)
    cfg.dataset.root, cfg.dataset.val_fraction = where, VAL_FRACTION
    return build(cfg, identify=lambda dataset: dataset)


def find(where: str) -> OwnPictures:
    """The pictures of a folder or a list, and the splits that they are tested on.

    Raises:
        DataError: there are none, or they cannot be split.
    """
    spec = compose(where, overrides_of("vit_mini")).dataset
    seen: list[Listing] = []
    first = identify(spec, seen.append)
    (listing,) = seen
    if listing.origin is None or "test" not in listing.origin.drawn:
        return OwnPictures((first,), listing)
    folds = [dataclasses.replace(spec, folds=FOLDS, fold=k) for k in range(FOLDS)]
    seen.clear()
    splits = tuple(identify(fold, seen.append) for fold in folds)
    return OwnPictures(splits, seen[0])


@dataclass(frozen=True)
class Division:
    """What trains and what is tested, and the seed of the runs on it."""

    dataset: DatasetSpec
    seed: int


def divisions(place: OwnPictures, times: int, seed: int) -> tuple[Division, ...]:
    """The splits of `place`, after they were run so many times already.

    Folds are drawn again, with other seeds of the runs too; where test was given, the seed alone
    is another one.
    """
    splits = place.splits
    if times > 0 and place.in_folds:
        first = splits[0].split_seed
        splits = tuple(
            identify(dataclasses.replace(fold, split_seed=first + times, manifest=""))
            for fold in splits
        )
    return tuple(Division(split, seed + times) for split in splits)


def trial(base: RunSpec, on: Division, epochs: int, rate: float | None) -> RunSpec:
    """The run that judges a rate on val; of a method without steps, that gives its val alone."""
    recipe = base.recipe
    if rate is not None:
        warmup = max(1, round(epochs * recipe.warmup_epochs / recipe.epochs))
        recipe = dataclasses.replace(recipe, lr=rate, epochs=epochs, warmup_epochs=warmup)
    return dataclasses.replace(
        base, dataset=on.dataset, seed=on.seed, recipe=recipe, phase=Phase.TUNE
    )


def final(judged: RunSpec) -> RunSpec:
    """The run that trains as the trial did, on train and val, and is tested."""
    return dataclasses.replace(judged, phase=Phase.FINAL)
