"""Checkpoints in every stranger's layout, made by renaming tiny timm networks. The weights mean nothing."""

import timm
import torch
from torch import nn

FAMILIES = {
    "resnet": ("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}),
    "bottleneck": ("resnet50", {"layers": [1, 2, 1, 1], "channels": [8, 8, 16, 16]}),
    "vit": ("vit_base_patch16_224", {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "img_size": 32}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 16, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 4, 8], "window_size": 2, "img_size": 64},
    ),
}
SIZES = {"resnet": 64, "bottleneck": 64, "vit": 32, "swin": 64}


def network(family, seed=0, **more):
    """A tiny network in eval mode, every weight and statistic random, without classifier."""
    name, args = FAMILIES[family]
    made = timm.create_model(name, num_classes=0, **{**args, **more})
    generator = torch.Generator().manual_seed(seed)
    for key, value in made.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            value.copy_(noise + 0.5 if key.endswith("running_var") else (noise - 0.5) * 0.3)
    return made.eval()


def others(family, prefix, seed=1):
    """The same names with other numbers: a momentum encoder, a student."""
    return put(prefix, network(family, seed).state_dict())


def put(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def linear(*names):
    return {f"{name}.{part}": torch.rand(2, 2) for name in names for part in ("weight", "bias")}


def plain(state, family):
    head = {"vit": "head", "swin": "head.fc"}.get(family, "fc")
    return {**state, **linear(head)}


def moco(state, family):
    weights = {**put("encoder_q.", state), **linear("encoder_q.fc.0", "encoder_q.fc.2")}
    weights |= {**others(family, "encoder_k."), **linear("encoder_k.fc.0", "encoder_k.fc.2")}
    weights |= {"queue": torch.rand(4, 8), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"epoch": 200, "arch": "resnet50", "state_dict": put("module.", weights), "optimizer": {"state": {}}}


def moco_v3(state, family):
    head = "head" if family == "vit" else "fc"
    weights = {**put("base_encoder.", state), **linear(f"base_encoder.{head}.0", f"base_encoder.{head}.3")}
    weights |= {**others(family, "momentum_encoder."), **linear(f"momentum_encoder.{head}.0", "predictor.0")}
    return {"epoch": 300, "arch": "vit_small", "state_dict": put("module.", weights), "scaler": {"scale": 1.0}}


def moby(state, family):
    weights = {**put("encoder.", microsoft(state, family)["model"]), **others(family, "encoder_k.")}
    weights |= {**linear("projector.linear1", "projector_k.linear1", "predictor.linear1"), "queue1": torch.rand(4, 8)}
    return {"model": weights, "epoch": 299}


def dino(state, family):
    teacher = {**put("backbone.", state), **linear("head.mlp.0"), "head.last_layer.weight_g": torch.rand(2, 1)}
    student = put("module.", {**others(family, "backbone."), **linear("head.mlp.0")})
    return {"student": student, "teacher": teacher, "epoch": 100}


def swav(state, family):
    weights = {**state, **linear("projection_head.0", "projection_head.3"), "prototypes.weight": torch.rand(3, 2)}
    return put("module.", weights)


def solo_learn(state, family, name="backbone"):
    weights = {**put(f"{name}.", state), **others(family, f"momentum_{name}."), **linear("classifier")}
    weights |= linear("projector.0", "projector.3", "predictor.0", "momentum_projector.0")
    return {"state_dict": weights, "pytorch-lightning_version": "1.5.10", "epoch": 999}


def old_solo_learn(state, family):
    return solo_learn(state, family, "encoder")


def lightly(state, family):
    weights = {**put("backbone.", state), **others(family, "backbone_momentum.")}
    weights |= linear("projection_head.layers.0", "prediction_head.layers.0", "projection_head_momentum.layers.0")
    weights |= linear("online_classifier.linear")
    return {"state_dict": weights, "pytorch-lightning_version": "2.1.0"}


def lightly_sequential(state, family):
    places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    parts = ((*key.partition("."), value) for key, value in state.items())
    weights = {f"backbone.{places[first]}.{rest}": value for first, _, rest, value in parts}
    weights |= {**linear("projection_head.layers.0"), "criterion.memory_bank.bank": torch.rand(2, 4)}
    return {"state_dict": weights}


def vissl(state, family):
    model = {"trunk": put("_feature_blocks.", state), "heads": linear("0.clf.0")}
    return {"classy_state_dict": {"base_model": {"model": model, "meta": {}}}, "phase_idx": 99}


def mmselfsup(state, family):
    weights = {**put("backbone.", state), **put("encoder_q.0.", state), **others(family, "encoder_k.0.")}
    return {"meta": {"epoch": 200}, "state_dict": weights | linear("neck.mlp.0", "head.predictor")}


def bare(state, family):
    return put("backbone.", state)


def microsoft(state, family):
    """The names of Microsoft's Swin: a stage ends with the patch merging; two buffers are stored."""
    weights = {}
    for key, value in state.items():
        _, stage, *rest = key.split(".")
        ours = f"layers.{int(stage) - 1}.{'.'.join(rest)}" if rest and rest[0] == "downsample" else key
        weights[ours] = value
    weights["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(4, 4, dtype=torch.long)
    weights["layers.0.blocks.1.attn_mask"] = torch.zeros(1, 4, 4)
    return {"model": weights}


MAKERS = {  # name in the result, and the maker
    "timm": plain, "moco": moco, "moco_v3": moco_v3, "dino": dino, "swav": swav, "solo-learn": solo_learn,
    "solo-learn before 1.0.3": old_solo_learn, "lightly": lightly, "lightly sequential": lightly_sequential,
    "vissl": vissl, "mmselfsup": mmselfsup, "backbone": bare, "moby": moby, "swin": microsoft,
}  # fmt: skip
CASES = [
    *((name, "resnet") for name in MAKERS if name not in ("moby", "swin")),
    ("timm", "bottleneck"), ("timm", "vit"), ("timm", "swin"), ("moco_v3", "vit"), ("dino", "vit"),
    ("solo-learn", "vit"), ("solo-learn", "swin"), ("lightly", "vit"), ("moby", "swin"), ("swin", "swin"),
]  # fmt: skip


def weights_of(content):
    """The dictionary of a made checkpoint that holds the backbone."""
    for key in ("state_dict", "model", "teacher"):
        if key in content:
            return content[key]
    return content["classy_state_dict"]["base_model"]["model"]["trunk"] if "classy_state_dict" in content else content


def images(family, seed=0):
    return torch.randn(2, 3, SIZES[family], SIZES[family], generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def features(module: nn.Module, x):
    return module(x)
