import re

import made_checkpoints as made
import pytest
import torch
from torch import nn

from smog.errors import UsageError
from smog.layouts import find
from smog.pretrained import open_pretrained


def opened(tmp_path, content, **more):
    torch.save(content, tmp_path / "checkpoint.pth")
    return open_pretrained(tmp_path / "checkpoint.pth", **more)


def checkpoint(layout, family):
    network = made.network(family)
    return network, made.MAKERS[layout](network.state_dict(), family)


@pytest.mark.parametrize(("layout", "family"), made.CASES)
def test_a_layout_gives_the_features_of_the_network_that_it_was_made_from(tmp_path, layout, family):
    network, content = checkpoint(layout, family)
    found = opened(tmp_path, content)
    image = made.images(family)
    assert torch.equal(made.features(found.network, image), made.features(network, image))
    assert found.origin["layout"] == layout.split(" ")[0]
    assert not found.network.training
    extra = len(made.weights_of(content)) - len(network.state_dict())
    beside = {"dino": len(content.get("student", ())), "vissl": 2}.get(layout, 0)
    assert sum(found.origin["left_out"].values()) == extra + beside


def test_what_is_left_out_is_named_with_its_count(tmp_path):
    _, content = checkpoint("moco", "resnet")
    keys = len(made.network("resnet").state_dict())
    assert opened(tmp_path, content).origin["left_out"] == {
        "encoder_q.fc.*": 4, "encoder_k.*": keys + 4, "queue": 1, "queue_ptr": 1
    }  # fmt: skip


def test_equal_weights_have_one_id_in_every_layout(tmp_path):
    ids = {opened(tmp_path, checkpoint(layout, "resnet")[1]).origin["id"] for layout in ("timm", "moco", "lightly")}
    assert len(ids) == 1
    assert opened(tmp_path, made.plain(made.network("resnet", seed=5).state_dict(), "resnet")).origin["id"] not in ids


# ---- the projects' own code as the oracle ----


def test_torchvisions_resnet_vit_and_swin_compute_what_they_computed(tmp_path):
    from torchvision.models import SwinTransformer, VisionTransformer, resnet18

    torch.manual_seed(0)
    swin = SwinTransformer([4, 4], 16, [1, 2, 1, 1], [1, 2, 4, 8], [2, 2], stochastic_depth_prob=0.0)
    vit = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=128, mlp_dim=512)
    nn.init.normal_(vit.conv_proj.bias)
    for network, side, head, layout in (
        (swin, 64, "head", "torchvision"), (vit, 32, "heads", "torchvision"), (resnet18(), 64, "fc", "timm")
    ):  # fmt: skip
        found = opened(tmp_path, network.eval().state_dict())
        setattr(network, head, nn.Identity())
        image = torch.randn(2, 3, side, side)
        torch.testing.assert_close(made.features(found.network, image), made.features(network, image))
        assert found.origin["layout"] == layout


def test_torchvisions_older_files_of_vit_have_other_names_of_the_mlp(tmp_path):
    from torchvision.models import VisionTransformer

    vit = VisionTransformer(32, 8, num_layers=1, num_heads=1, hidden_dim=64, mlp_dim=256).eval()
    state = {
        key.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): v for key, v in vit.state_dict().items()
    }
    new, old = opened(tmp_path, vit.state_dict()), opened(tmp_path, state)
    assert new.origin["id"] == old.origin["id"]


def test_lightlys_own_modules(tmp_path):
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from torchvision.models import resnet18

    class Example(nn.Module):
        """The parts of lightly's published MoCo example."""

        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(*list(resnet18().children())[:-1])
            self.projection_head = MoCoProjectionHead(512, 512, 128)
            self.backbone_momentum = nn.Sequential(*list(resnet18().children())[:-1])
            self.projection_head_momentum = MoCoProjectionHead(512, 512, 128)
            self.criterion = NTXentLoss(memory_bank_size=(16, 128))

    example = Example().eval()
    found = opened(tmp_path, {"state_dict": example.state_dict(), "pytorch-lightning_version": "2.6"})
    image = made.images("resnet")
    torch.testing.assert_close(made.features(found.network, image), made.features(example.backbone, image).flatten(1))
    assert found.origin["layout"] == "lightly"


def test_torchvisions_mobilenet_is_refused_by_its_first_keys(tmp_path):
    from torchvision.models import mobilenet_v2

    state = mobilenet_v2().state_dict()
    with pytest.raises(UsageError, match=r"no layout known here; it begins with features\.0\.0\.weight.*Known: timm"):
        opened(tmp_path, state)
    with pytest.raises(UsageError, match=r"missing 265: conv1\.weight.*unknown 314: features\.0\.0\.weight"):
        opened(tmp_path, state, model="resnet50")


def test_the_small_vit_of_moco_v3_has_12_heads_and_that_of_dino_6(tmp_path):
    network = made.network("vit", embed_dim=384, num_heads=12, depth=1)
    for maker, heads in ((made.moco_v3, 12), (made.dino, 6)):
        found = opened(tmp_path, maker(network.state_dict(), "vit"))
        assert found.network.blocks[0].attn.num_heads == heads
    named = opened(tmp_path, made.moco_v3(network.state_dict(), "vit"))
    image = made.images("vit")
    assert torch.equal(made.features(named.network, image), made.features(network, image))


# ---- refused ----


VICTIMS = {"vit": "blocks.1.norm2.bias", "swin": "layers.1.blocks.1.norm2.bias"}


@pytest.mark.parametrize(("layout", "family"), made.CASES)
def test_a_key_too_few_too_many_or_of_another_shape_is_refused_with_the_list(tmp_path, layout, family):
    state = made.network(family).state_dict()
    content = made.MAKERS[layout](state, family)
    weights, victim = made.weights_of(content), VICTIMS.get(family, "layer2.0.bn2.bias")
    key = next(key for key, value in weights.items() if value is state[victim])
    value = weights.pop(key)
    with pytest.raises(UsageError, match=f"missing 1: {re.escape(victim)}$"):
        opened(tmp_path, content)
    weights[key] = torch.zeros(len(value) + 1)
    theirs = re.escape(f"{key.removeprefix('module.')} ([{len(value) + 1}] there, [{len(value)}] here)")
    with pytest.raises(UsageError, match=f"of another shape or type 1: {theirs}$"):
        opened(tmp_path, content)
    weights[key] = value
    weights[f"{'module.' if key.startswith('module.') else ''}surplus.weight"] = value
    with pytest.raises(UsageError, match=r"unknown 1: surplus\.weight$"):
        opened(tmp_path, content)


def test_a_projector_inside_of_a_plain_file_is_refused_by_name(tmp_path):
    state = made.network("resnet").state_dict() | made.linear("projector.0", "projector.2")
    with pytest.raises(UsageError, match=r"unknown 4: projector\.0\.weight, projector\.0\.bias, projector\.2\.weight"):
        opened(tmp_path, state)


def test_a_file_that_fits_two_layouts_is_refused(tmp_path):
    state = made.network("resnet").state_dict()
    both = {**made.put("encoder_q.", state), **made.put("base_encoder.", state)}
    with pytest.raises(UsageError, match=r"fits several layouts \(moco, moco_v3\); it begins with encoder_q\.conv1"):
        opened(tmp_path, both)


def test_two_keys_for_one_weight_are_not_both_taken():
    start = "encoder.layers.encoder_layer_0.mlp."
    state = {"class_token": torch.zeros(1, 1, 4), "conv_proj.weight": torch.zeros(4, 3, 2, 2)}
    found = find({**state, f"{start}0.bias": torch.ones(4), f"{start}linear_1.bias": torch.zeros(4)}, "FILE")
    assert found.unknown == [f"{start}linear_1.bias"]
    assert found.state["blocks.0.mlp.fc1.bias"].all()


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"epoch": 3, "teacher": {"a": 1}}])
def test_a_file_without_weights_is_refused(content):
    with pytest.raises(UsageError, match=r"FILE holds no weights; it has (nothing|state_dict|epoch)"):
        find(content, "FILE")


def test_a_backbone_key_that_is_no_tensor_is_refused(tmp_path):
    state = made.network("resnet").state_dict()
    with pytest.raises(UsageError, match=r"unknown 1: bn1\.bias"):
        opened(tmp_path, {**state, "bn1.bias": 0.5})
