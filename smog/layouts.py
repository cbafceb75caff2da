"""The layouts of strangers' checkpoints: which keys are the backbone's, what timm calls them, which keys are not its.

Two tables. LAYOUTS says how a project wraps the backbone, NAMES what a library calls its parts; a key that neither
names is unknown, and the caller refuses it. Patterns are those of the shell (fnmatch).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from smog.errors import UsageError

VISSL = "classy_state_dict.base_model.model"
INSIDE = (f"{VISSL}.trunk", "teacher", "state_dict", "model", "")  # where in a file the weights lie; "" is the file
PLAIN = ("state_dict", "model", "")
Marks = tuple[tuple[str, ...], ...]  # a match has, of every group, a pattern that some key fits


@dataclass(frozen=True)
class Names:
    """What a library calls the parts of a network: ``renames`` are a regular expression and timm's name."""

    name: str
    marks: Marks
    renames: tuple[tuple[str, str], ...]
    left_out: tuple[str, ...]  # the classifier, and buffers that follow from the shape


@dataclass(frozen=True)
class Layout:
    """How a project wraps the backbone: its keys start with ``prefix``; ``left_out`` are the method's own keys."""

    name: str
    prefix: str
    marks: Marks
    left_out: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    inside: tuple[str, ...] = PLAIN
    beside: str = ""  # the place of further weights of the method, counted as left out
    heads: Mapping[int, int] = field(default_factory=dict)  # of a ViT by its width, where not one for every 64


@dataclass(frozen=True)
class Found:
    """The backbone of a file by timm's names, and what else the file has."""

    layout: str
    state: dict[str, Tensor]
    keys: dict[str, str]  # timm's name: the file's
    unknown: list[str]
    left_out: dict[str, int]  # pattern: how many keys
    heads: Mapping[int, int]


_SWIN_BUFFERS = ("*.relative_position_index", "*.attn_mask")
# timm; torchvision calls a ResNet's parts the same.
TIMM = Names("timm", (), (), ("fc.weight", "fc.bias", "head.weight", "head.bias", "head.fc.*", *_SWIN_BUFFERS))
NAMES = (
    # torchvision/models/vision_transformer.py; mlp.linear_1 and _2 are its published files' names for mlp.0 and 3.
    Names(
        "torchvision",
        (("class_token",), ("conv_proj.weight",)),
        (
            (r"class_token", "cls_token"),
            (r"conv_proj\.(.*)", r"patch_embed.proj.\1"),
            (r"encoder\.pos_embedding", "pos_embed"),
            (r"encoder\.layers\.encoder_layer_(\d+)\.ln_(\d)\.(.*)", r"blocks.\1.norm\2.\3"),
            (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(.*)", r"blocks.\1.attn.qkv.\2"),
            (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(.*)", r"blocks.\1.attn.proj.\2"),
            (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(.*)", r"blocks.\1.mlp.fc1.\2"),
            (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(.*)", r"blocks.\1.mlp.fc2.\2"),
            (r"encoder\.ln\.(.*)", r"norm.\1"),
        ),
        ("heads.*",),
    ),
    # torchvision/models/swin_transformer.py: stages are features 1, 3, 5, 7, with a patch merging before each but one.
    Names(
        "torchvision",
        (("features.0.0.weight",), ("features.1.0.attn.relative_position_bias_table",)),
        (
            (r"features\.0\.0\.(.*)", r"patch_embed.proj.\1"),
            (r"features\.0\.2\.(.*)", r"patch_embed.norm.\1"),
            *(
                (rf"features\.{2 * stage + 1}\.(\d+)\.mlp\.{ours}\.(.*)", rf"layers.{stage}.blocks.\1.mlp.{timm}.\2")
                for stage in range(4)
                for ours, timm in ((0, "fc1"), (3, "fc2"))
            ),
            *((rf"features\.{2 * stage + 1}\.(\d+\..*)", rf"layers.{stage}.blocks.\1") for stage in range(4)),
            *((rf"features\.{2 * stage}\.(.*)", rf"layers.{stage}.downsample.\1") for stage in range(1, 4)),
            (r"(norm\..*)", r"\1"),
        ),
        ("head.weight", "head.bias", *_SWIN_BUFFERS),
    ),
    # microsoft/Swin-Transformer, and timm before 0.8: the patch merging ends a stage, where timm's begins the next.
    Names(
        "swin",
        (("patch_embed.proj.weight",), ("layers.0.downsample.*",)),
        (
            *((rf"layers\.{stage}\.downsample\.(.*)", rf"layers.{stage + 1}.downsample.\1") for stage in range(3)),
            (r"(.*)", r"\1"),
        ),
        ("head.weight", "head.bias", *_SWIN_BUFFERS),
    ),
    # nn.Sequential(*list(resnet.children())[:-1]) in lightly's examples: 2 and 3 are the ReLU and the pooling.
    Names(
        "sequential",
        (("0.weight",), ("4.0.conv1.weight",)),
        (
            (r"0\.(.*)", r"conv1.\1"),
            (r"1\.(.*)", r"bn1.\1"),
            *((rf"{stage + 3}\.(.*)", rf"layer{stage}.\1") for stage in range(1, 5)),
        ),
        (),
    ),
)


def _first(prefix: str) -> tuple[str, ...]:
    """Return the first keys that a backbone behind a prefix can have."""
    return tuple(prefix + key for key in ("conv1.weight", "patch_embed.proj.weight", "conv_proj.weight", "0.weight"))


_SOLO = ("projector.*", "predictor.*", "classifier.*", "head.*", "prototypes.*", "momentum_*", "queue*")
_LIGHTLY = (
    "projection_head*", "prediction_head*", "backbone_momentum.*", "teacher_*", "student_*", "online_classifier.*",
)  # fmt: skip
LAYOUTS = (
    Layout(
        "timm",
        "",
        (("conv1.weight", "patch_embed.proj.weight", "conv_proj.weight", "features.1.0.attn.*_bias_table"),),
        unless=("projection_head.*", "prototypes.*"),
    ),
    # facebookresearch/moco, moco/builder.py: the network of the queries; its fc is the projector.
    Layout("moco", "encoder_q.", (_first("encoder_q."),), ("encoder_q.fc.*", "encoder_k.*", "queue", "queue_ptr")),
    # facebookresearch/moco-v3, moco/builder.py and vits.py: fc or head is the projector; its ViT-S has 12 heads.
    Layout(
        "moco_v3",
        "base_encoder.",
        (_first("base_encoder."),),
        ("base_encoder.fc.*", "base_encoder.head.*", "momentum_encoder.*", "predictor.*"),
        heads={384: 12},
    ),
    # microsoft/Transformer-SSL (MoBY), models/moby.py
    Layout(
        "moby",
        "encoder.",
        (_first("encoder."), ("encoder_k.*",)),
        ("encoder_k.*", "projector.*", "projector_k.*", "predictor.*", "queue1", "queue2", "queue_ptr"),
    ),
    # facebookresearch/dino, main_dino.py: the teacher is what it evaluates.
    Layout("dino", "backbone.", (("backbone.*",),), ("head.*",), inside=("teacher",), beside="student"),
    # facebookresearch/swav (and deepclusterv2), src/resnet50.py: the padding before conv1 adds up to torchvision's.
    Layout(
        "swav",
        "",
        (("conv1.weight",), ("projection_head.*", "prototypes.*")),
        ("projection_head.*", "prototypes.*"),
    ),
    # vturrisi/solo-learn, solo/methods: BYOL and all others. Before 1.0.3 the backbone was called encoder.
    Layout("solo-learn", "backbone.", (_first("backbone."), (*_SOLO[:3], "momentum_backbone.*")), _SOLO),
    Layout("solo-learn", "encoder.", (_first("encoder."), _SOLO[:3]), _SOLO, unless=("encoder_k.*",)),
    # lightly-ai/lightly, examples and benchmarks
    Layout(
        "lightly",
        "backbone.",
        (_first("backbone."), _LIGHTLY),
        (*_LIGHTLY, "prototypes.*", "criterion.*", "memory_bank.*", "smog.*", "queues.*"),
    ),
    # facebookresearch/vissl, vissl/models/trunks/resnext.py; the heads lie beside the trunk.
    Layout(
        "vissl",
        "_feature_blocks.",
        (_first("_feature_blocks."),),
        inside=(f"{VISSL}.trunk", *PLAIN),
        beside=f"{VISSL}.heads",
    ),
    # open-mmlab/mmselfsup, mmselfsup/models/algorithms: encoder_q and online_net are the backbone and the neck again.
    Layout(
        "mmselfsup",
        "backbone.",
        (_first("backbone."), ("neck.*", "head.fc*", "encoder_k.*", "target_net.*")),
        ("neck.*", "head.*", "encoder_q.*", "encoder_k.*", "online_net.*", "target_net.*", "momentum_encoder.*",
         "queue", "queue_ptr"),
    ),
)  # fmt: skip
BARE = Layout("backbone", "backbone.", (_first("backbone."),))  # of a file from which the method's keys were taken


def find(content: Mapping[str, Any], where: str, any_timm: bool = False) -> Found:
    """Return the backbone inside of a checkpoint's content by timm's names.

    With ``any_timm`` a file in no known layout is taken for timm's own. Raises UsageError for one that fits no
    layout or several; the first keys are named. Unknown keys are returned, not refused.
    """
    place, weights = _weights(content, where)
    layout = _layout(place, weights, where, any_timm)
    inner = [key.removeprefix(layout.prefix) for key in weights if key.startswith(layout.prefix)]
    names = next((names for names in NAMES if _marked(names.marks, inner)), TIMM)
    found = Found(layout.name if layout.prefix or names is TIMM else names.name, {}, {}, [], {}, layout.heads)
    for key, value in weights.items():
        _sort(key, value, layout, names, found)
    if layout.beside and (others := _tensors(_at(content, layout.beside))):
        found.left_out[f"{layout.beside.rpartition('.')[2]}.*"] = others
    return found


def _sort(key: str, value: Any, layout: Layout, names: Names, found: Found) -> None:
    """Put one key of the file where it belongs: left out, the backbone's, or unknown."""
    inner = key.removeprefix(layout.prefix)
    patterns = [(pattern, key) for pattern in layout.left_out]
    if key.startswith(layout.prefix):
        patterns += [(layout.prefix + pattern, key) for pattern in names.left_out]
    pattern = next((pattern for pattern, name in patterns if fnmatchcase(name, pattern)), None)
    name = _renamed(inner, names) if key.startswith(layout.prefix) else None
    if pattern:
        found.left_out[pattern] = found.left_out.get(pattern, 0) + 1
    elif name is None or name in found.state or not isinstance(value, Tensor):
        found.unknown.append(key)
    else:
        found.state[name], found.keys[name] = value, key


def _renamed(key: str, names: Names) -> str | None:
    """Return timm's name of a key, or None for one that the table lacks."""
    if not names.renames:
        return key
    matches = ((re.fullmatch(pattern, key), new) for pattern, new in names.renames)
    return next((match.expand(new) for match, new in matches if match), None)


def _layout(place: str, weights: Mapping[str, Any], where: str, any_timm: bool) -> Layout:
    fits = [one for one in LAYOUTS if place in one.inside and _marked(one.marks, weights, one.unless)]
    if not fits and _marked(BARE.marks, weights):
        return BARE
    if not fits and any_timm:
        return LAYOUTS[0]
    if len(fits) == 1:
        return fits[0]
    first = ", ".join(list(weights)[:4])
    if fits:
        raise UsageError(
            f"{where} fits several layouts ({', '.join(one.name for one in fits)}); it begins with {first}"
        )
    known = ", ".join(dict.fromkeys(one.name for one in LAYOUTS))
    raise UsageError(
        f"{where} is in no layout known here; it begins with {first}. Known: {known}, torchvision; a file with timm's "
        "names of another network opens with model=NAME"
    )


def _marked(marks: Marks, keys: Iterable[str], unless: tuple[str, ...] = ()) -> bool:
    keys = list(keys)
    fits = all(any(fnmatchcase(key, pattern) for pattern in group for key in keys) for group in marks)
    return fits and not any(fnmatchcase(key, pattern) for pattern in unless for key in keys)


def _weights(content: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """Return where the weights lie in a file, and them, without the ``module.`` of DistributedDataParallel."""
    for place in INSIDE:
        node = _at(content, place)
        if _tensors(node):
            keys = [str(key) for key in node]
            start = "module." if all(key.startswith("module.") for key in keys) else ""
            return place, {str(key).removeprefix(start): value for key, value in node.items()}
    raise UsageError(f"{where} holds no weights; it has {', '.join(map(str, list(content)[:4])) or 'nothing'}")


def _at(content: Mapping[str, Any], place: str) -> Any:
    node: Any = content
    for part in filter(None, place.split(".")):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _tensors(node: Any) -> int:
    """Return how many tensors a node holds, at any depth below 4."""
    return _count(node, 4) if isinstance(node, Mapping) and any(isinstance(v, Tensor) for v in node.values()) else 0


def _count(node: Any, depth: int) -> int:
    if isinstance(node, Tensor):
        return 1
    return sum(_count(value, depth - 1) for value in node.values()) if isinstance(node, Mapping) and depth else 0
