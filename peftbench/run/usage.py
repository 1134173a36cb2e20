"""How an exported folder is used, as its README says: with peftbench, and with timm alone."""

from __future__ import annotations

from typing import Any

from peftbench.artefacts import card as cards
from peftbench.artefacts import task_file
from peftbench.backbones.models.registry import is_own
from peftbench.data.images import Levels
from peftbench.prediction.timm_form import CONFIG, LOCAL_DIR_SINCE

PREDICT = """\
```sh
peftbench predict FOLDER PICTURES --csv predictions.csv{option}
```

```python
import peftbench as pb

model = pb.load("FOLDER"{argument})  # in eval mode
found = model.predict("PICTURE")  # or a PIL image, an array (H, W, 3) of uint8, a list of them
print(found.class_name, found.probability, found.top)
model.classes  # the names, in the order of the logits
model.transform  # makes (3, {size}, {size}) of a picture, normalised: what the model takes
```
"""

SHARING = """
One backbone in memory serves several tasks:

```python
tuned = pb.attach(backbone, "FOLDER")  # onto a bare timm backbone in memory
backbone = pb.detach(tuned)  # for the next task
```
"""

WITH_TIMM = """\
import timm
import torch
from PIL import Image, ImageOps

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(
    **timm.data.resolve_model_data_config(model), is_training=False
)
classes = model.pretrained_cfg["label_names"]


def opened(path):
    picture = ImageOps.exif_transpose(Image.open(path))  # upright
{levels}    if {{"A", "a"}} & set(picture.getbands()) or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        picture = Image.alpha_composite(white, layer)
    return picture.convert("RGB")


with torch.inference_mode(){autocast}:
    logits = model(transform(opened("PICTURE"))[None])
probabilities = logits.float().softmax(1)[0]
print(classes[probabilities.argmax()], probabilities.max().item())
"""

LEVELS = """\
    if picture.mode.startswith("I"):  # more than 8 bits: {black} is black and {white} white
        numbers = np.asarray(picture).astype(np.int64).clip({black}, {white}) - {black}
        picture = Image.fromarray((numbers / {step!r}).round().astype(np.uint8))
"""

ROUNDING = """\
The run was tested in {dtype}, in which a merged model rounds otherwise: a picture near a tie may
come out as the other class.

"""

OLDER_TIMM = """\
import json

with open("FOLDER/{config}", encoding="utf-8") as file:
    config = json.load(file)
model = timm.create_model(
    config["architecture"],
    checkpoint_path="FOLDER/{weights}",
    pretrained_cfg=config["pretrained_cfg"],
    num_classes=config["num_classes"],
    **config["model_args"],
).eval()
classes = config["label_names"]
"""

WEIGHTS_ALONE = """\
import timm
from safetensors.torch import load_file

model = timm.create_model({architecture!r}, num_classes={num_classes}{options}).eval()
model.load_state_dict(load_file("FOLDER/{weights}"))
"""

REGISTERED = """\
from peftbench.backbones.models.registry import register_all

register_all()  # the architectures of peftbench, which timm alone does not have
"""


def usage(card: dict[str, Any]) -> str:
    """The section of a README on what to do with the folder that it lies in."""
    return _of_merged(card) if card["kind"] == "merged" else _of_task(card)


def _of_task(card: dict[str, Any]) -> str:
    local = card["spec"]["backbone"].get("checkpoint") is not None
    source = "from where its name says"
    if local:
        source = "from the file above, which is not in this folder (its SHA-256 is checked)"
    return (
        f"`{task_file.TASK}` holds the tuned tensors and the head; the backbone comes {source}.\n\n"
        + PREDICT.format(
            size=cards.image_size(card),
            option=" --checkpoint PATH" if local else "",
            argument=', checkpoint="PATH"' if local else "",
        )
        + SHARING
    )


def _of_merged(card: dict[str, Any]) -> str:
    """With peftbench, with timm, and what is to be known of the latter."""
    notes = "".join(f"{note}\n\n" for note in card.get("notes", []))
    ours = "With peftbench:\n\n" + PREDICT.format(
        size=cards.image_size(card), option="", argument=""
    )
    if not card.get("timm_alone", False):
        built = card["timm"]
        options = "".join(f", {key}={value!r}" for key, value in built["kwargs"].items())
        weights = WEIGHTS_ALONE.format(
            architecture=built["architecture"],
            num_classes=built["num_classes"],
            options=options,
            weights=task_file.MERGED,
        )
        if is_own(built["architecture"]):
            weights = REGISTERED + weights
        return f"{ours}\n{notes}The weights alone are a plain timm model:\n\n{_block(weights)}"
    dtype = cards.dtype(card)
    script = WITH_TIMM.format(
        levels=_scaling(cards.levels(card)),
        autocast="" if dtype == "float32" else f', torch.autocast("cpu", torch.{dtype})',
    )
    if cards.levels(card) is not None:
        script = f"import numpy as np\n{script}"
    rounding = "" if dtype == "float32" else ROUNDING.format(dtype=dtype)
    older = OLDER_TIMM.format(config=CONFIG, weights=task_file.MERGED)
    return (
        f"{ours}\n{rounding}{notes}With timm {LOCAL_DIR_SINCE} or newer, without peftbench:\n\n"
        f"{_block(script)}\nAn older timm builds the model so:\n\n{_block(older)}"
    )


def _scaling(levels: Levels | None) -> str:
    """Lines that make 8 bits of more, where the data had such pictures."""
    if levels is None:
        return ""
    step = (levels.white - levels.black) / 255
    return LEVELS.format(black=levels.black, white=levels.white, step=step)


def _block(code: str) -> str:
    return f"```python\n{code}```\n"
