"""The tuners of Hugging Face `peft` as methods: what they compute, where they stand, what is said.

Expected values are of our own methods with the same tensors, or of the papers' formulas.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.tiny_backbones import anatomy_of, fresh, images
from support.tiny_tuned import start
from torch import Tensor, nn

import peftbench as pb
from peftbench.errors import ConfigError, NotMergeable, UnknownName, Unsupported
from peftbench.methods import METHODS, Tuned, apply, discover, hf
from peftbench.methods.base import MethodCard
from peftbench.methods.hugging_face.adapter import LEAST_STEPS, Steps

discover()
peft = pytest.importorskip("peft")

TUNERS = [name for name in METHODS if name.startswith("hf_")]


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(tuned: Tuned, names: list[str], x: Tensor) -> list[Tensor]:
    loss = F.cross_entropy(tuned.model.eval()(x), torch.arange(len(x)))
    return list(torch.autograd.grad(loss, [tuned.model.get_parameter(name) for name in names]))


def randomised(method: str, **options: object) -> Tuned:
    """On the tiny ViT in float64, with tensors of noise in place of those at the start."""
    tuned = start(method, "vit", **options)
    tuned.model.double()
    with torch.no_grad():
        for seed, parameter in enumerate(tuned.method_params.values()):
            parameter.copy_(0.1 * noise(tuple(parameter.shape), seed))
    return tuned


# ------------------------------------------------------------------- against our own, by formula


def test_lora_of_peft_is_our_lora_on_the_fused_projection() -> None:
    """Same factors, same outputs and same gradients; scaled by alpha / r = 6 / 3."""
    ours = start("lora", "vit", rank=3, alpha=6.0, targets=["qkv"])
    theirs = start("hf_lora", "vit", r=3, lora_alpha=6)
    x = images("vit", 3, dtype=torch.float64)
    names: dict[str, list[str]] = {"ours": [], "theirs": []}
    for tuned in (ours, theirs):
        tuned.model.double()
    with torch.no_grad():
        for block in range(2):
            for seed, (mine, other) in enumerate((("a", "lora_A"), ("b", "lora_B"))):
                path = f"blocks.{block}.attn.qkv"
                names["ours"].append(f"{path}.delta.{mine}.qkv")
                names["theirs"].append(f"{path}.{other}.default.weight")
                pair = (
                    ours.model.get_parameter(names["ours"][-1]),
                    theirs.model.get_parameter(names["theirs"][-1]),
                )
                for parameter in pair:
                    parameter.copy_(0.1 * noise(tuple(parameter.shape), 10 * block + seed))
        head = {n: noise(tuple(p.shape), 99) for n, p in ours.head_params.items()}
        for tuned in (ours, theirs):
            for name, values in head.items():
                tuned.model.get_parameter(name).copy_(values)
    assert ours.method_params.keys() == set(names["ours"])
    assert theirs.method_params.keys() == set(names["theirs"])
    torch.testing.assert_close(theirs.model.eval()(x), ours.model.eval()(x), rtol=1e-12, atol=1e-12)
    mine, other = gradients(ours, names["ours"], x), gradients(theirs, names["theirs"], x)
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-13)


def projected(tuned: Tuned, path: str, x: Tensor) -> Tensor:
    return tuned.model.get_submodule(path)(x)


def weights(path: str) -> tuple[Tensor, Tensor]:
    module = fresh("vit").double().get_submodule(path)
    return module.get_parameter("weight").detach(), module.get_parameter("bias").detach()


def test_ia3_scales_outputs_and_the_inputs_of_the_second_mlp_layer() -> None:
    """Liu et al., §3.3: l * (W x + b), and W (l * x) + b behind the activation."""
    tuned = randomised("hf_ia3")
    for path, width in (("blocks.1.attn.qkv", 24), ("blocks.1.mlp.fc2", 96)):
        x = noise((2, 5, width), seed=3)
        weight, bias = weights(path)
        factor = tuned.model.get_parameter(f"{path}.ia3_l.default").detach().flatten()
        if path.endswith("fc2"):
            expected = F.linear(x * factor, weight, bias)
        else:
            expected = F.linear(x, weight, bias) * factor
        with torch.no_grad():
            torch.testing.assert_close(projected(tuned, path, x), expected)


def test_loha_adds_a_product_entry_by_entry_of_two_low_rank_products() -> None:
    """Hyeon-Woo et al., §2.2: W + alpha / r (B1 A1) * (B2 A2)."""
    path = "blocks.0.attn.qkv"
    tuned = randomised("hf_loha", r=4, alpha=8)
    b1, a1, b2, a2 = (
        tuned.model.get_parameter(f"{path}.hada_{name}.default").detach()
        for name in ("w1_a", "w1_b", "w2_a", "w2_b")
    )
    weight, bias = weights(path)
    x = noise((2, 5, 24), seed=3)
    expected = F.linear(x, weight + 8 / 4 * (b1 @ a1) * (b2 @ a2), bias)
    with torch.no_grad():
        torch.testing.assert_close(projected(tuned, path, x), expected)


@pytest.mark.parametrize("method", ["hf_pissa", "hf_olora"])
def test_an_initialisation_from_the_weights_leaves_them_and_trains_the_same_function(
    method: str,
) -> None:
    """W - B0 A0 + B A with the product of the first factors taken off: W itself is as it was."""
    path = "blocks.1.attn.qkv"
    tuned = start(method, "vit", r=4, lora_alpha=4)
    base = fresh("vit").get_submodule(path).get_parameter("weight")
    layer = tuned.model.get_submodule(path)
    assert torch.equal(layer.layer.base_layer.weight, base)
    down, up = (getattr(layer.layer, n).default.weight.detach() for n in ("lora_A", "lora_B"))
    left = base.detach() - up @ down
    if method == "hf_pissa":  # what is left has the other singular values
        values = torch.linalg.svdvals(base.detach())
        torch.testing.assert_close(
            torch.linalg.svdvals(left)[:20], values[4:], rtol=1e-4, atol=1e-5
        )
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))
    changed = torch.randn(up.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        layer.layer.lora_B.default.weight.copy_(changed)
        bias = fresh("vit").get_submodule(path).get_parameter("bias")
        expected = F.linear(x, left + changed @ down, bias)
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    assert {name.rpartition(".")[2] for name in tuned.fixed} == {"start_down", "start_up"}


# ------------------------------------------------------------------- where they stand


@pytest.mark.parametrize("method", TUNERS)
@pytest.mark.parametrize("backbone", ["beit", "swin_v2"])
def test_a_weight_that_is_read_past_its_module_is_refused(method: str, backbone: str) -> None:
    """An adapter there would be counted and never run. LN tuning and IA3's MLPs are not there."""
    anatomy = anatomy_of(backbone)
    bypassed = {site.path for site in anatomy.sites if not site.called}
    chosen = METHODS[method]()
    if not bypassed & {site.path for site in chosen.sites(anatomy)}:
        assert method == "hf_ln_tuning"
        return
    with pytest.raises(Unsupported, match=r"read the weight of .*qkv.* and never call it"):
        chosen.check(anatomy)


def test_without_the_description_of_what_is_called_training_shows_it() -> None:
    """The same adapter put past the check: no tensor of it gets a gradient."""
    from dataclasses import replace

    anatomy = anatomy_of("beit")
    believed = replace(anatomy, sites=tuple(replace(s, called=True) for s in anatomy.sites))
    backbone = fresh("beit")
    tuned = apply(METHODS["hf_lora"](), backbone, believed, 7, torch.Generator().manual_seed(0))
    loss = F.cross_entropy(tuned.model(images("beit", 3)), torch.arange(3))
    found = torch.autograd.grad(loss, list(tuned.method_params.values()), allow_unused=True)
    assert all(gradient is None for gradient in found)


@pytest.mark.parametrize("backbone", ["vit", "efficientnet", "mixer"])
def test_only_the_modules_of_the_chosen_roles_are_replaced(backbone: str) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    method, anatomy = METHODS["hf_lora"](), anatomy_of(backbone)
    tuned = start("hf_lora", backbone)
    found = [p for p, m in tuned.model.named_modules() if isinstance(m, BaseTunerLayer)]
    assert sorted(found) == sorted(site.path for site in method.sites(anatomy))
    assert isinstance(tuned.model.get_submodule(anatomy.head), nn.Linear)
    plain = dict(fresh(backbone).named_parameters())
    for name, parameter in tuned.model.named_parameters():
        bare = name.replace(".base_layer", "")
        if bare in plain and not bare.startswith(f"{anatomy.head}."):
            assert torch.equal(parameter, plain[bare]) and not parameter.requires_grad


def test_names_of_targets_never_match_a_part_of_another_name() -> None:
    """`proj` is the output of attention; a ViT's patch embedding has one of that name too."""
    tuned = start("hf_lora", "vit", targets=["proj"])
    assert tuned.touched == ("blocks.0.attn.proj", "blocks.1.attn.proj")


def test_settings_that_peft_would_change_in_silence_are_refused() -> None:
    with pytest.raises(Unsupported, match=r"it trains .* numbers in place of"):
        start("hf_oft", "vit", oft_block_size=7)  # 24 is no multiple of it


def test_what_cannot_be_folded_says_so_before_training() -> None:
    assert not METHODS["hf_lily"].card.mergeable
    with pytest.raises(NotMergeable, match="hf_lily"):
        METHODS["hf_lily"]().merge(fresh("vit"))
    # a shift of the outputs needs a bias, which the key projection of this family lacks
    with pytest.raises(Unsupported, match=r"hf_beft cannot be folded into 'blocks.0.attn.k_proj'"):
        start("hf_beft", "eva_split")


# ------------------------------------------------------------------- settings and identity


def test_any_field_of_a_tuner_can_be_set_and_an_unknown_one_is_named() -> None:
    tuned = start("hf_lora", "vit", options=["use_dora:true", "lora_alpha:3"])
    layer = tuned.model.get_submodule("blocks.0.attn.qkv")
    assert "lora_magnitude_vector" in dict(layer.named_children())
    assert layer.scaling == {"default": 3 / 8}
    with pytest.raises(UnknownName, match=r"use_dorra.*Did you mean: use_dora"):
        start("hf_lora", "vit", options=["use_dorra:true"])
    for key in ("modules_to_save:[head]", "target_modules:[head]", "bias:all"):
        with pytest.raises(UnknownName, match="Unknown option of method=hf_lora"):
            start("hf_lora", "vit", options=[key])
    with pytest.raises(ConfigError, match="not of the form key:value"):
        METHODS["hf_lora"](options=["use_dora"])
    with pytest.raises(ConfigError, match=r"unknown targets \['query'\]"):
        METHODS["hf_lora"](targets=["query"])


def test_the_identity_holds_the_tuner_its_settings_and_the_version_of_peft() -> None:
    identity = METHODS["hf_dora"](r=4).identity()
    assert (identity["tuner"], identity["peft"]) == ("LORA", peft.__version__)
    assert identity["fixed"] == {"use_dora": True}
    assert identity["hyperparameters"]["r"] == 4
    assert json.loads(json.dumps(identity)) == identity
    assert METHODS["hf_dora"](options=["r:4"]).identity() != identity


def test_every_tuner_of_the_table_is_one_of_peft_with_fields_that_it_has() -> None:
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    for name in TUNERS:
        method = METHODS[name]()
        assert isinstance(method, hf.HuggingFaceTuner) and isinstance(method.card, MethodCard)
        fields = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[method.entry.tuner]].__dataclass_fields__
        assert {*method.settings(), *method.entry.schedule} <= fields.keys(), name


def test_a_new_tuner_is_an_entry_of_a_table_and_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(METHODS, "_entries", {})
    table = tmp_path / "more.toml"
    table.write_text(
        '[ours]\ntuner = "LOHA"\ntitle = "Ours"\npaper = "none"\nsection = "none"\n'
        'summary = "A product."\nsettings = { r = 2 }\ntargets = ["proj"]\n'
        'parameters = "2 * r * (inputs + outputs)"\n'
    )
    hf.register_tuners(table)
    assert list(METHODS) == ["hf_ours"]
    anatomy = anatomy_of("vit")
    generator = torch.Generator().manual_seed(0)
    tuned = apply(METHODS["hf_ours"](r=3), fresh("vit"), anatomy, 7, generator)
    # two blocks, 24 inputs and 24 outputs
    assert sum(p.numel() for p in tuned.method_params.values()) == 2 * 2 * 3 * 48
    table.write_text('[ours]\ntuner = "LOHA"\ncolour = "red"\n')
    with pytest.raises(ConfigError, match=r"more.toml: ours: .*colour"):
        hf.register_tuners(table)


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("r * (inputs + outputs)", 4 * 30),
        ("-r + 100 // 3", 29),
        ("inputs if feeds else outputs", 20),
        ("max(r, min(inputs, 7)) + int(inputs * share)", 7 + 2),
        ("divisor(outputs)", 4),  # 20 = 4 x 5
        ("1 if r < 5 else 2", 1),
    ],
)
def test_a_formula_of_a_count_is_computed(formula: str, expected: int) -> None:
    values = {"r": 4, "inputs": 10, "outputs": 20, "feeds": False, "share": 0.25}
    assert hf.computed(formula, values) == expected


@pytest.mark.parametrize(
    "formula", ["__import__('os')", "r.real", "[1][0]", "unknown + 1", "r ** 9"]
)
def test_anything_else_in_a_formula_is_refused(formula: str) -> None:
    with pytest.raises(ValueError, match="is no formula"):
        hf.computed(formula, {"r": 4})


# ------------------------------------------------------------------- without peft


def test_without_peft_each_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "peft_version", lambda: "")
    model = fresh("vit")
    with pytest.raises(ConfigError) as caught:
        pb.tune(model, "hf_lora", 7)
    assert str(caught.value) == (
        "method=hf_lora needs the package peft, which is not installed. "
        "Run: pip install 'peftbench[hf-peft]'"
    )
    METHODS["hf_lora"]().check(anatomy_of("vit"))  # which lists need


# ------------------------------------------------------------------- steps


def trained(tuned: Tuned, steps: int, first: int = 1, total: int = 20) -> None:
    """Steps of plain gradient descent with what the method does behind each."""
    x, hook = images("vit", 4), tuned.after_step
    assert hook is not None and tuned.regulariser is not None
    optimizer = torch.optim.SGD(list(tuned.trainable.values()), lr=0.1)
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(tuned.model.eval()(x), torch.arange(4)) + tuned.regulariser()
        loss.backward()
        optimizer.step()
        hook(step, total)


def live_triplets(tuned: Tuned) -> int:
    return sum(int((p != 0).sum()) for name, p in tuned.method_params.items() if ".lora_E." in name)


def test_adalora_leaves_its_target_of_triplets_by_the_end() -> None:
    """Two targets of 12 triplets each, of which 8 each are to stay: 16 in all."""
    tuned = start("hf_adalora", "vit")
    trained(tuned, 20)
    assert live_triplets(tuned) == 2 * 8


def test_adalora_adds_the_distance_of_its_factors_from_orthogonal_ones() -> None:
    """Zhang et al., eq. 4: |P'P - I| + |Q Q' - I|, here the mean over all factors times 0.5."""
    tuned = start("hf_adalora", "vit")
    assert tuned.regulariser is not None
    distances = []
    for name, p in tuned.method_params.items():
        if ".lora_A." in name or ".lora_B." in name:
            square = p @ p.T if ".lora_A." in name else p.T @ p
            distances.append(torch.linalg.norm(square - torch.eye(len(square))))
    expected = 0.5 * torch.stack(distances).mean()
    torch.testing.assert_close(tuned.regulariser(), expected)


def test_a_training_that_goes_on_from_a_saved_state_ends_the_same() -> None:
    whole, first, second = (start("hf_adalora", "vit") for _ in range(3))
    trained(whole, 12)
    trained(first, 7)
    assert first.after_step is not None and second.after_step is not None
    second.load_state({n: t.clone() for n, t in first.state().items()})
    second.after_step.load_state_dict(copy.deepcopy(first.after_step.state_dict()))
    trained(second, 5, first=8)
    assert all(torch.equal(t, second.state()[n]) for n, t in whole.state().items())


def test_adamss_stops_the_least_important_parts_and_takes_that_up_again() -> None:
    tuned = start("hf_adamss", "vit", asa_target_subspaces=4)
    x = images("vit", 4)
    assert isinstance(tuned.after_step, Steps)
    for step in range(1, 21):
        F.cross_entropy(tuned.model(x), torch.arange(4)).backward()
        torch.optim.SGD(list(tuned.trainable.values()), lr=0.1).step()
        tuned.after_step(step, 20)
    # two targets of five subspaces each
    live = {n for n, p in tuned.method_params.items() if p.requires_grad and "adamss_A" in n}
    assert len(live) < 10
    again = start("hf_adamss", "vit", asa_target_subspaces=4)
    assert again.after_step is not None
    again.after_step.load_state_dict(tuned.after_step.state_dict())
    found = {n for n, p in again.method_params.items() if p.requires_grad and "adamss_A" in n}
    assert found == live


def test_a_training_of_few_steps_chooses_nothing() -> None:
    tuned = start("hf_adalora", "vit")
    trained(tuned, 3, total=LEAST_STEPS - 1)
    assert live_triplets(tuned) > 2 * 8
