"""Any checkpoint as a timm network: a run, an export, a stranger's file, or fresh weights. Strictly, or not at all."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from smog.architectures import SIZE, infer, named
from smog.checkpoint import FILE, PREVIOUS, read
from smog.config import CONF, build, load, options
from smog.data.views import MEAN, STD
from smog.errors import UsageError
from smog.identity import run_id
from smog.layouts import Found, find
from smog.models import build_backbone
from smog.schema import Backbone
from smog.store import DONE, find_run, read_json

RANDOM = "random"
CONFIG, WEIGHTS = "config.json", "model.safetensors"  # of an export; the names that timm and its hub use
SUFFIXES = (".pth", ".pt", ".tar", ".ckpt", ".torch", ".bin", ".safetensors")
SHOWN = 4  # keys of each kind in a message
# What stands beside the weights in mmengine's checkpoints, and in others as NumPy's numbers, by the names that a pickle
# has for it: nothing of it is needed, and nothing of it is called.
IGNORED = (
    "mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr", "numpy.ndarray", "numpy.dtype",
    "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar",
)  # fmt: skip
Triple = tuple[float, float, float]


class Ignored:
    """Stands for what is not read; argparse.Namespace, of DINO's and timm's files, holds plain values and is."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


@dataclass(frozen=True)
class Pretrained:
    """A network with its weights, and where they come from.

    ``network``: a timm module without classifier, in eval mode, images [b, 3, size, size] to [b, num_features].
    ``backbone``: smog.models.build_backbone(backbone, size) builds the same shape again.
    ``size``: side in pixels of the images that it was trained on; 224 where that is unknown.
    ``mean``, ``std``: of RGB in [0, 1].
    ``origin``: plain JSON. kind (run, export, file, random); id, 12 hex: the run's, else over the weights, or for
    random over backbone and seed; layout; file (its name) and its sha256 (None for a run, whose id says all);
    left_out {pattern: keys}; run_id and seed of the pretraining, None where unknown (for random the seed of the
    weights); finished: False for a run that still goes on.
    """

    network: nn.Module
    backbone: Backbone
    size: int
    mean: Triple
    std: Triple
    origin: dict[str, Any]


def open_pretrained(ckpt: str | Path, store: str | Path = "runs", model: str = "", seed: int = 0) -> Pretrained:
    """Open a run (id, first characters, folder, last.pt), an export, a stranger's file, or ``random``.

    ``model`` names the timm model of a stranger's file where its keys do not tell, and for ``random`` that model or
    a file of conf/backbone, whose weights ``seed`` draws. Raises UsageError for whatever does not fit, with the lists
    of missing, unknown and mis-shaped keys.
    """
    path = Path(ckpt)
    if str(ckpt) == RANDOM:
        return _random(model, seed)
    export = path.parent if path.name == WEIGHTS and path.is_file() else path
    own = path.name in (FILE, PREVIOUS) and (path.parent / "config.yaml").is_file()
    if path.is_file() and not own and not (export / CONFIG).is_file():
        return _file(path, model)
    if not path.exists() and path.suffix in SUFFIXES:
        raise UsageError(f"{path} does not exist")
    if model:
        raise UsageError(f"model={model!r} is for strangers' files and {RANDOM}; {ckpt} says itself what it is")
    return _export(export) if (export / CONFIG).is_file() else _run(find_run(Path(store), str(ckpt)))


def _run(folder: Path) -> Pretrained:
    config, own = load(folder / "config.yaml"), "backbone."
    content = read(folder / FILE)
    if "method" not in content:
        raise UsageError(f"{folder / FILE} is no checkpoint of a pretraining")
    network = build_backbone(config.backbone, config.views.size)
    state = {key.removeprefix(own): value for key, value in content["method"].items() if key.startswith(own)}
    network.load_state_dict(state)
    others = [key.partition(".")[0] + ".*" for key in content["method"] if not key.startswith(own)]
    code = content.get("run_id") or run_id(config)
    origin = _origin("run", code, "smog", FILE, None, {name: others.count(name) for name in others})
    origin |= {"run_id": code, "seed": config.seed, "finished": (folder / DONE).exists()}
    return Pretrained(network.eval(), config.backbone, config.views.size, MEAN, STD, origin)


def _export(folder: Path) -> Pretrained:
    path, values = folder / WEIGHTS, read_json(folder / CONFIG)
    values = values if isinstance(values, dict) else {}
    shown, more = values.get("pretrained_cfg", {}), values.get("smog", {})
    try:
        size = int(shown["input_size"][-1])
        backbone = build(Backbone, {"name": values["architecture"], "stem_stride": 0, "args": _args(values)})
        mean, std = _triple(shown["mean"]), _triple(shown["std"])
        code, drawn = more.get("run_id"), more.get("seed")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, UsageError) as error:
        raise UsageError(f"{folder / CONFIG} is no configuration of timm's ({type(error).__name__}: {error})") from None
    found = find(_read(path), str(path), any_timm=True)
    network = build_backbone(backbone, size)
    _load(network, found, f"{path} as {backbone.name}")
    origin = _origin("export", _digest(network), found.layout, path.name, _sha256(path), found.left_out)
    return Pretrained(network.eval(), backbone, size, mean, std, origin | {"run_id": code, "seed": drawn})


def _args(values: Mapping[str, Any]) -> Any:
    return values.get("model_args", {})


def _triple(values: Sequence[Any]) -> Triple:
    first, second, third = (float(value) for value in values)
    return first, second, third


def _file(path: Path, model: str) -> Pretrained:
    found = find(_read(path), str(path), any_timm=bool(model))
    where = f"{path} (layout {found.layout})"
    try:
        backbone, size = (named(model, found.state, found.heads), 0) if model else infer(found.state, found.heads)
        size = size or _trained_size(model)
        network = build_backbone(backbone, size)
    except UsageError as error:
        unknown = f"; unknown {_some(found.unknown)}" if found.unknown else ""
        raise UsageError(f"{where}: {error}{unknown}") from None
    _load(network, found, f"{where} as {backbone.name}")
    origin = _origin("file", _digest(network), found.layout, path.name, _sha256(path), found.left_out)
    return Pretrained(network.eval(), backbone, size, MEAN, STD, origin)


def _trained_size(model: str) -> int:
    cfg = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    return int(cfg.input_size[-1]) if cfg else SIZE


def _random(model: str, seed: int) -> Pretrained:
    if not model:
        raise UsageError(f"{RANDOM} needs model=NAME: a timm model, or one of {', '.join(options('backbone'))}")
    if model in options("backbone"):
        import yaml

        backbone = build(Backbone, yaml.safe_load((CONF / "backbone" / f"{model}.yaml").read_text()))
    else:
        backbone = Backbone(model, 0, {})
    size = int(backbone.args.get("img_size", _trained_size(backbone.name)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_backbone(backbone, size)
    origin = _origin(RANDOM, _digest(network), None, None, None, {}) | {"seed": seed}
    return Pretrained(network.eval(), backbone, size, MEAN, STD, origin)


def _origin(
    kind: str, code: str, layout: str | None, file: str | None, sha256: str | None, left_out: dict[str, int]
) -> dict[str, Any]:
    known = {"kind": kind, "id": code, "layout": layout, "file": file, "sha256": sha256, "left_out": left_out}
    return {**known, "run_id": None, "seed": None, "finished": True}


def _read(path: Path) -> dict[str, Any]:
    """Read a stranger's file as data; one that holds code is refused by the name of what it would call."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        with torch.serialization.safe_globals([argparse.Namespace, *((Ignored, name) for name in IGNORED)]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage has many names
        text = " ".join(str(error).split())
        if blocked := re.search(r"GLOBAL ([\w.]+)", text):
            raise UsageError(
                f"{path} holds more than data ({blocked[1]}) and is not opened; who trusts it writes its weights "
                'alone: torch.save({"state_dict": ...}, NEW)'
            ) from None
        why = f"it is damaged, or of another format ({type(error).__name__}: {text.partition('. ')[0][:120]})"
        raise UsageError(f"{path} is no checkpoint that can be read: {why}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds one {type(content).__name__}, not weights by name")
    return content


def _load(network: nn.Module, found: Found, where: str) -> None:
    """Load every key or raise with the lists. Files of before PyTorch 0.4.1 lack num_batches_tracked, which is 0."""
    wanted = network.state_dict()
    old = {key: value for key, value in wanted.items() if key.endswith(".num_batches_tracked")}
    state = {**old, **found.state}
    lists = {
        "missing": [key for key in wanted if key not in state],
        "unknown": [*found.unknown, *(found.keys[key] for key in found.state if key not in wanted)],
        "of another shape or type": [
            f"{found.keys[key]} ({_kind(state[key])} there, {_kind(value)} here)"
            for key, value in wanted.items()
            if key in found.keys and _kind(state[key]) != _kind(value)
        ],
        "not finite": [
            found.keys[key] for key in wanted if key in found.keys and not torch.isfinite(found.state[key]).all()
        ],
    }
    if any(lists.values()):
        text = "; ".join(f"{what} {_some(keys)}" for what, keys in lists.items() if keys)
        raise UsageError(f"{where}: {text}")
    network.load_state_dict(state)


def _kind(value: Tensor) -> str:
    return f"{list(value.shape)}" if value.is_floating_point() else f"{list(value.shape)} of whole numbers"


def _some(keys: Sequence[str]) -> str:
    more = f", and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"{len(keys)}: {', '.join(keys[:SHOWN])}{more}"


def _digest(network: nn.Module) -> str:
    """Return 12 hex digits over the weights: equal in whatever layout they came."""
    found = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        if not key.endswith(".num_batches_tracked"):  # not in all files, and nothing that features depend on
            found.update(f"{key} {list(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:12]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
