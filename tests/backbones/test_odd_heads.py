"""Classifiers that are several, inside a module, or convolutions: found, trained, kept, merged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.odd_heads import ODD, odd, pictures
from torch import Tensor, nn

import peftbench as pb
from peftbench.artefacts import task_file
from peftbench.backbones.classifier import heads_of
from peftbench.backbones.describe import describe
from peftbench.backbones.hashes import hash_tensors
from peftbench.errors import Unsupported
from peftbench.methods import METHODS, Tuned, apply, discover, surgery
from peftbench.methods.layers.side import SideTuned
from peftbench.methods.layers.solvable import Solvable

discover()
CLASSES = 5
SINGLE = [name for name, each in ODD.items() if len(each.classifiers) == 1]


def tuned(name: str, method: str, num_classes: int | None = CLASSES) -> pb.TunedModel:
    model, size = odd(name), ODD[name].image_size
    if not METHODS[method].card.solved:
        return pb.tune(model, method, num_classes, image_size=size)
    return pb.TunedModel(solvable(model, size, method), surgery.snapshot(model)).eval()


def solvable(model: nn.Module, size: int, method: str, **options: object) -> Tuned:
    """A head that is computed, as a run attaches it; `pb.tune` takes methods that train."""
    made = METHODS[method](**options)
    return apply(made, model, describe(model, size), CLASSES, torch.Generator().manual_seed(0))


def received(model: nn.Module, paths: tuple[str, ...], x: Tensor) -> list[Tensor]:
    """What the modules at `paths` receive of images `x` in eval mode."""
    seen: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda module, args, path=path: seen.update({path: args[0].detach()})
        )
        for path in paths
    ]
    with torch.no_grad():
        model.eval()(x)
    for handle in handles:
        handle.remove()
    return [seen[path] for path in paths]


@pytest.mark.parametrize("name", list(ODD))
def test_classifiers_are_where_timms_own_entries_say(name: str) -> None:
    heads = heads_of(odd(name))
    assert tuple(h.path for h in heads if not h.auxiliary) == ODD[name].classifiers
    assert tuple(h.path for h in heads if h.auxiliary) == ODD[name].auxiliary
    assert all(h.on_maps == ODD[name].maps for h in heads)


@pytest.mark.parametrize("name", list(ODD))
def test_what_lies_in_front_of_a_classifier_belongs_to_the_backbone(name: str) -> None:
    model = odd(name)
    anatomy = describe(model, ODD[name].image_size)
    widths = [h.width for h in anatomy.heads]
    total = sum(p.numel() for p in model.parameters())
    assert anatomy.num_params == total - sum((width + 1) * 3 for width in widths)
    full = pb.tune(model, "full", CLASSES, image_size=ODD[name].image_size).tuned
    own = [h.width for h in anatomy.heads if not h.auxiliary]
    assert sum(p.numel() for p in full.head_params.values()) == sum((w + 1) * CLASSES for w in own)
    assert sum(p.numel() for p in full.unfrozen_params.values()) == anatomy.num_params


@pytest.mark.parametrize("method", ["linear", "full", "bias", "norm"])
@pytest.mark.parametrize("name", list(ODD))
def test_it_trains_reloads_merges_and_is_read_by_timm(
    name: str, method: str, tmp_path: Path
) -> None:
    x, model = pictures(name), tuned(name, method)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    F.cross_entropy(model(x), torch.arange(len(x))).backward()
    torch.optim.SGD(pb.trainable(model), lr=1e-2).step()
    moved = {
        n.removeprefix("model.") for n, p in model.named_parameters() if (p != before[n]).any()
    }
    assert moved >= set(model.tuned.head_params) and moved <= set(model.tuned.trainable)
    with torch.no_grad():
        expected = model.eval()(x)
        task_file.save(model.tuned, tmp_path, {})
        again = tuned(name, method).eval()
        task_file.load(again.tuned, tmp_path)
        torch.testing.assert_close(again(x), expected, rtol=0, atol=0)
        merged = pb.merge(model)
        plain = ODD[name].make(num_classes=CLASSES).eval()
        plain.load_state_dict(merged.state_dict(), strict=True)
        assert merged.num_classes == CLASSES
        torch.testing.assert_close(merged(x), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(plain(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["two tokens", "two norms", "two inside one", "two branches"])
def test_the_logits_are_the_mean_of_a_linear_head_each(name: str) -> None:
    model, x = tuned(name, "linear").eval(), pictures(name)
    parts = received(model.model, ODD[name].classifiers, x)
    with torch.no_grad():
        own = [
            F.linear(seen, *model.model.get_submodule(path).parameters())
            for path, seen in zip(ODD[name].classifiers, parts, strict=True)
        ]
        torch.testing.assert_close(model(x), torch.stack(own).mean(0), rtol=0, atol=1e-6)
    (note,) = model.tuned.notes
    assert "2 classifiers" in note and repr(ODD[name].classifiers[1]) in note


def test_an_auxiliary_classifier_is_silent_beside_a_new_one_and_trains_beside_a_kept_one() -> None:
    model, x = tuned("beside", "linear").eval(), pictures("beside")
    (feature,) = received(model.model, ("head",), x)
    with torch.no_grad():
        expected = F.linear(feature, *model.model.head.parameters())
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)
    assert not any("aux" in name for name in model.tuned.trainable)
    assert "'aux_head' is zero" in model.tuned.notes[0]
    kept = tuned("beside", "linear", None)
    assert {"aux_head.weight", "head.weight"} <= set(kept.tuned.head_params)


@pytest.mark.parametrize("method", ["full", "bias", "norm"])
@pytest.mark.parametrize("name", ["two tokens", "map", "hidden layer", "weighed stages"])
def test_a_kept_classifier_changes_nothing_before_training(name: str, method: str) -> None:
    with torch.no_grad():
        expected = odd(name)(pictures(name))
        model = tuned(name, method, None).eval()
        torch.testing.assert_close(model(pictures(name)), expected, rtol=0, atol=0)
    assert {f"{path}.weight" for path in ODD[name].classifiers} <= set(model.tuned.head_params)
    with torch.no_grad():
        back = pb.detach(model)
        torch.testing.assert_close(back(pictures(name)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["mlp", "knn", "logistic", "majority"])
@pytest.mark.parametrize("name", ["two tokens", "two branches", "map", "beside", "hidden layer"])
def test_heads_of_other_kinds_stand_there_too(name: str, method: str, tmp_path: Path) -> None:
    x, model = pictures(name), tuned(name, method)
    labels = np.array([0, 0, 1, 4])
    if model.tuned.method.card.solved:
        seen = received(model.model, ODD[name].classifiers, x)
        model.tuned.solve(*(Solvable(s.flatten(1).numpy(), labels, CLASSES) for s in seen))
    else:
        F.cross_entropy(model(x), torch.tensor(labels)).backward()
        assert all(p.grad is not None for p in pb.trainable(model))
    with torch.no_grad():
        expected = model.eval()(x)
        assert expected.shape == (4, CLASSES) and expected.isfinite().all()
        task_file.save(model.tuned, tmp_path, {})
        again = tuned(name, method).eval()
        task_file.load(again.tuned, tmp_path)
        torch.testing.assert_close(again(x), expected, rtol=0, atol=0)
    if method == "majority":  # 2, 1 and 1 of 4 images, and at least 1e-6 of a class without any
        shares = torch.tensor([0.5, 0.25, 1e-6, 1e-6, 0.25]).log().expand(4, CLASSES)
        torch.testing.assert_close(expected, shares, rtol=0, atol=1e-5)


def test_a_knn_head_on_a_map_votes_as_on_its_vectors() -> None:
    """With one neighbour each training image is its own, so it gets its own class."""
    made = solvable(odd("map"), 32, "knn", k=1)
    (seen,) = received(made.model, ("head.fc",), pictures("map"))
    labels = np.array([3, 0, 1, 4])
    made.solve(Solvable(seen.flatten(1).numpy(), labels, CLASSES))
    with torch.no_grad():
        assert made.model.eval()(pictures("map")).argmax(1).tolist() == labels.tolist()


@pytest.mark.parametrize("name", SINGLE)
def test_side_tuning_with_all_weight_on_the_backbone_is_the_backbone(name: str) -> None:
    """sigmoid(40) is 1 in float32. A norm or a hidden layer of the head counts as well."""
    model = pb.tune(odd(name), "sidetune", None, image_size=ODD[name].image_size, alpha=40.0).eval()
    assert isinstance(model.model, SideTuned)
    with torch.no_grad():
        expected = odd(name)(pictures(name))
        torch.testing.assert_close(model(pictures(name)), expected, rtol=0, atol=1e-5)


def test_side_tuning_of_several_features_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"one feature of the classifier.* 2 classifiers"):
        tuned("two tokens", "sidetune")


@pytest.mark.parametrize("name", ["two tokens", "map", "two lists"])
def test_the_hash_of_a_backbone_is_the_same_whatever_its_classifiers(name: str) -> None:
    other = odd(name)
    with torch.no_grad():
        for path in (*ODD[name].classifiers, *ODD[name].auxiliary):
            other.get_submodule(path).get_parameter("weight").zero_()
    assert hash_tensors(other) == hash_tensors(odd(name))
    other.get_parameter(next(n for n, _ in other.named_parameters())).data.zero_()
    assert hash_tensors(other) != hash_tensors(odd(name))


@pytest.mark.parametrize("name", ["two tokens", "two inside one", "map", "weighed stages"])
def test_a_model_without_classes_is_given_some(name: str) -> None:
    bare = ODD[name].make(num_classes=0).eval()
    model = pb.tune(bare, "linear", CLASSES, image_size=ODD[name].image_size).eval()
    assert model(pictures(name)).shape == (4, CLASSES)
