"""A finished run as a folder that timm loads: weights as safetensors, timm's configuration, a model card."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from pathlib import Path
from typing import Any

from smog.config import load
from smog.errors import UsageError, nearest
from smog.identity import group_id
from smog.pretrained import CONFIG, WEIGHTS, Pretrained, open_pretrained
from smog.schema import Config
from smog.store import DONE, read_json

FORMATS = ("timm",)
ELSEWHERE = ("torchvision", "detectron2", "mmseg")  # transfer/convert.py
CARD = "README.md"


def export(folder: Path, out: Path, kind: str = "timm") -> Path:
    """Write a run's backbone into a new folder, whole or not at all, and return it.

    ``timm.create_model("local-dir:OUT", pretrained=True)`` loads it, and open_pretrained does. Raises UsageError for
    a run that is not finished, a backbone that timm has no name for, and a folder that is not empty.
    """
    _check_kind(kind, folder)
    if not (folder / DONE).exists():
        raise UsageError(f"run {folder.name} is not finished; run the same `smog train` again to finish it")
    config = load(folder / "config.yaml")
    _check(config, out)
    opened = open_pretrained(folder)
    from safetensors.torch import save

    state = {key: value.contiguous() for key, value in opened.network.state_dict().items()}
    files = {
        WEIGHTS: save(state, {"format": "pt"}),  # the metadata that readers of such files ask for
        CONFIG: (json.dumps(_timm_config(opened, config), indent=1, allow_nan=False) + "\n").encode(),
        CARD: card(opened, config, folder).encode(),
    }
    _write_folder(out, files)
    return out


def _check_kind(kind: str, folder: Path) -> None:
    if kind in ELSEWHERE:
        raise UsageError(
            f"format={kind!r}: {kind} has names of its own: "
            f"python transfer/convert.py --ckpt {folder} --to {kind} --out FILE"
        )
    if kind not in FORMATS:
        raise UsageError(f"format={kind!r}{nearest(kind, (*FORMATS, *ELSEWHERE))}")


def _check(config: Config, out: Path) -> None:
    if config.backbone.name == "pixels":
        raise UsageError("backbone pixels is no network; there is nothing to export")
    if config.backbone.stem_stride:
        raise UsageError(
            f"backbone.stem_stride={config.backbone.stem_stride}: the 3x3 stem without pooling is ours, timm's "
            f"{config.backbone.name} has no such argument; `smog.load_backbone(RUN)` gives this network"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"out={out} is there already and not empty; name a new folder")


def _write_folder(out: Path, files: dict[str, bytes]) -> None:
    """Write all files into a folder beside it, then rename: nobody meets a part of an export."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        for name, content in files.items():
            with open(temporary / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _timm_config(opened: Pretrained, config: Config) -> dict[str, Any]:
    """Return what timm and its hub keep beside the weights; ``smog`` is ours, and they leave it alone."""
    network: Any = opened.network
    own = network.pretrained_cfg
    shown = {
        "custom_load": False,
        "input_size": [3, opened.size, opened.size],
        "fixed_input_size": bool(own.get("fixed_input_size")),
        "interpolation": "bilinear",  # what data/views.py resizes with
        "crop_pct": 224 / 256 if opened.size >= 96 else 1.0,  # that of whole_view
        "crop_mode": "center",
        "mean": list(opened.mean),
        "std": list(opened.std),
        "num_classes": 0,
        "first_conv": own.get("first_conv"),
        "classifier": own.get("classifier"),
        "license": _licence().lower(),
    }
    return {
        "architecture": opened.backbone.name,
        "num_classes": 0,
        "num_features": network.num_features,
        "model_args": opened.backbone.args,
        "pretrained_cfg": shown,
        "smog": {"run_id": opened.origin["run_id"], "group_id": group_id(config), "seed": config.seed},
    }


def _licence() -> str:
    return importlib.metadata.metadata("smog-suite")["License-Expression"]


_CARD = """---
license: {licence}
library_name: timm
pipeline_tag: image-feature-extraction
tags:
- self-supervised-learning
- smog
- {data}
---
# {network}, SMoG on {data}

A backbone without classifier: images to {features} features. Pretrained without labels by
SMoG (Synchronous Momentum Grouping, [arXiv 2207.06167](https://arxiv.org/abs/2207.06167)) with the SMoG suite.

```python
import timm

network = timm.create_model("local-dir:PATH_OF_THIS_FOLDER", pretrained=True)
```

Images are RGB in [0, 1], normalised with mean {mean} and std {std}.

| | |
|---|---|
| run | `{run}`, seed {seed} |
| recipe | {recipe} |
| data | {data}, fingerprint `{fingerprint}` |
| method | {method} |
| crops | {crops} |
| optimisation | {optimisation} |
| precision, device | {precision}, {device} |
| code | {code} |
| versions | {versions} |

## Results

{results}
"""


def card(opened: Pretrained, config: Config, folder: Path) -> str:
    """Return the model card of a run: what it is, how it was made, every stored number, how it is loaded."""
    made, views, optim = read_json(folder / "env.json"), config.views, config.optim
    local = f" + {views.local_crops} x {views.local_size} px" if views.local_crops else ""
    return _CARD.format(
        licence=_licence().lower(),
        network=opened.backbone.name,
        features=opened.network.num_features,
        mean=list(opened.mean),
        std=list(opened.std),
        run=opened.origin["run_id"],
        seed=config.seed,
        recipe=config.recipe,
        data=config.data.name,
        fingerprint=config.data.fingerprint,
        method=f"{config.method.name}, {config.method.num_groups} groups of {config.method.dim} dimensions",
        crops=f"{views.global_crops} x {views.size} px{local}",
        optimisation=f"{optim.name}, {optim.epochs:g} epochs, {optim.batch} images a step",
        precision=made["precision"],
        device=made["device"],
        code=f"commit {made['commit'] or 'unknown'}{', with changes that are not in it' if made['dirty'] else ''}",
        versions=", ".join(f"{name} {version}" for name, version in made["versions"].items()),
        results=_results(folder),
    )


def _results(folder: Path) -> str:
    """Return every stored number of a run as Markdown; the protocol's id stands for all settings of its task."""
    rows = []
    for path in sorted((folder / "results").glob("*@*.json")):
        result = read_json(path)
        for metric, value in result["metrics"].items():
            rows.append(f"| {result['task']} | `{result['protocol']}` | {metric} | {value:.4g} |")
    head = "| task | protocol | metric | value |\n|---|---|---|---:|\n"
    return head + "\n".join(rows) if rows else "None is in the store."
