"""The proof finds the mistakes that users of every framework report, and says where they are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_backbones import MEAN, NARROW, STD, network
from torch import nn

from smog.errors import RunError, UsageError
from smog.schema import Backbone
from transfer.bodies import torchvision as bodies
from transfer.convert import convert, load, transferred
from transfer.parity import as_text, input_parity, parity, without_token
from transfer.spec import spec_of

SCALE, SHIFT = torch.tensor(STD).view(3, 1, 1), torch.tensor(MEAN).view(3, 1, 1)


def converted(source):
    body = bodies.build(spec_of(source)).eval()
    load(body, convert(source.state_dict(), spec_of(source), "torchvision"))
    return body


def prove(source, body, size=64, before=lambda images: images):
    return parity(source, spec_of(source), lambda images: bodies.stages(body, before(images)), size, MEAN, STD)


def test_rows_say_what_was_compared():
    source = network("bottleneck")
    seen = []
    rows = prove(source, converted(source), size=40, before=lambda images: seen.append(images) or images)
    assert [row["stage"] for row in rows] == 2 * ["stage 1", "stage 2", "stage 3", "stage 4"]
    assert [row["shape"] for row in rows[:4]] == [[2, 32, 16, 16], [2, 64, 8, 8], [2, 96, 4, 4], [2, 128, 2, 2]]
    assert rows[4]["shape"] == [2, 32, 16, 24]  # one that is not square
    with torch.no_grad():
        maps = source.layer1(source.maxpool(source.act1(source.bn1(source.conv1(seen[0])))))
    assert rows[0]["scale"] == pytest.approx(float(maps.abs().max()), rel=1e-5)
    assert len(as_text(rows).splitlines()) == 9
    assert rows == prove(source, converted(source), size=40)  # the same images each time


COLOURS = {
    "BGR": lambda images: images.flip(1),
    "not normalised": lambda images: images * SCALE + SHIFT,
    "std not applied": lambda images: images * SCALE,
    "mean not applied": lambda images: images + SHIFT / SCALE,
}


@pytest.mark.parametrize("name", ["basic, small stem", "swin", "vit"])
@pytest.mark.parametrize("mistake", COLOURS)
def test_another_input_is_found_in_the_first_stage(name, mistake):
    source = network(name)
    with pytest.raises(RunError, match="stage 1 differs at"):
        prove(source, converted(source), before=COLOURS[mistake])


PREPARED = {
    "BGR": lambda pixels: (pixels.flip(1) / 255 - SHIFT) / SCALE,
    "mean and std in BGR": lambda pixels: (pixels / 255 - SHIFT.flip(0)) / SCALE.flip(0),
    "std 1, detectron2's default": lambda pixels: pixels - SHIFT * 255,
    "values to 255": lambda pixels: (pixels - SHIFT) / SCALE,
    "half for all": lambda pixels: pixels / 127.5 - 1,
    "another size": lambda pixels: ((pixels / 255 - SHIFT) / SCALE)[..., 1:],
}


def test_the_preparation_of_another_framework():
    own = input_parity(lambda pixels: (pixels - SHIFT * 255) / (SCALE * 255), 32, MEAN, STD)
    assert (own["stage"], own["shape"]) == ("input", [2, 3, 32, 32])
    for prepare in PREPARED.values():
        with pytest.raises(RunError, match="input differs in colour order, mean or standard deviation"):
            input_parity(prepare, 32, MEAN, STD)
    with pytest.raises(UsageError, match="std above 0"):
        input_parity(lambda pixels: pixels, 32, MEAN, (1.0, 0.0, 1.0))


# ---- inside the network ----


def stride_in_the_first(body):
    body.layer2[0].conv1.stride, body.layer2[0].conv2.stride = (2, 2), (1, 1)


def padded_at_one_side(body):
    body.conv1.padding = (0, 0)
    body.conv1 = nn.Sequential(nn.ZeroPad2d((2, 3, 2, 3)), body.conv1)


def fresh_statistics(body):
    body.layer4[0].bn3.reset_running_stats()


RESNET = {
    "stride in the 1x1": (stride_in_the_first, "stage 2 differs"),
    "another padding of the stem": (padded_at_one_side, "stage 1 differs"),
    "no pooling": (lambda body: setattr(body, "maxpool", nn.Identity()), "stage 1 .* shape"),
    "average pooling": (lambda body: setattr(body, "maxpool", nn.AvgPool2d(3, 2, 1)), "stage 1 differs"),
    "statistics of the last stage not loaded": (fresh_statistics, "stage 4 differs"),
    "another epsilon": (lambda body: setattr(body.layer3[0].bn2, "eps", 1e-3), "stage 3 differs"),
    "shortcut not loaded": (lambda body: nn.init.normal_(body.layer3[0].downsample[0].weight), "stage 3 differs"),
    "a block without effect": (lambda body: nn.init.zeros_(body.layer2[1].bn3.weight), "stage 2 differs"),
    "a NaN": (lambda body: nn.init.constant_(body.layer4[0].conv1.weight, float("nan")), "stage 4 differs"),
    "batch statistics": (lambda body: body.train(), "stage 1 differs"),
    "a stage less": (bodies.take_last_stage, "gives 3 maps where the source gives 4"),
}


@pytest.mark.parametrize("mistake", RESNET)
def test_a_mistake_in_a_resnet_is_found_where_it_is(mistake):
    source = network("bottleneck")
    body = converted(source)
    change, message = RESNET[mistake]
    change(body)
    with pytest.raises(RunError, match=message):
        prove(source, body)


def merged_in_another_order(body):
    weight = body.features[4].reduction.weight  # between the second and the third stage
    weight.data = weight.data.unflatten(1, (2, 2, -1)).transpose(1, 2).flatten(1)


def norms_swapped(body):
    body.features[5][1].norm1, body.features[5][1].norm2 = body.features[5][1].norm2, body.features[5][1].norm1


SWIN = {
    "no shift": lambda body: setattr(body.features[5][1].attn, "shift_size", [0, 0]),
    "no table of positions": lambda body: nn.init.zeros_(body.features[5][1].attn.relative_position_bias_table),
    "patches merged in another order": merged_in_another_order,
    "norms swapped": norms_swapped,
}


@pytest.mark.parametrize("mistake", SWIN)
def test_a_mistake_in_the_third_stage_of_a_swin_is_found_there(mistake):
    source = network("swin")
    body = converted(source)
    SWIN[mistake](body)
    with pytest.raises(RunError, match="stage 3 differs"):
        prove(source, body)


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2, 1), (2, 1, 0)])
def test_swapped_queries_keys_and_values_are_found(order):
    source = network("vit")
    body = converted(source)
    attention = body.encoder.layers[1].self_attention
    for values in (attention.in_proj_weight, attention.in_proj_bias):
        parts = values.data.chunk(3)
        values.data = torch.cat([parts[place] for place in order])
    with pytest.raises(RunError, match="stage 2 differs"):
        prove(source, body)


def test_a_class_token_counts_and_its_absence_can_be_asked_for():
    source = network("vit")
    body = converted(source)
    nn.init.zeros_(body.class_token)
    with pytest.raises(RunError, match="stage 1 differs"):
        prove(source, body)

    def patches_alone(images):
        tokens, maps = source.patch_embed(images) + source.pos_embed[:, 1:], []
        for block in source.blocks:
            tokens = block(tokens)
            maps.append(tokens.transpose(1, 2).unflatten(2, (4, 4)))
        return maps

    assert len(parity(without_token(source), spec_of(source), patches_alone, 32, MEAN, STD)) == 3
    with pytest.raises(RunError, match="stage 1 differs"):
        parity(source, spec_of(source), patches_alone, 32, MEAN, STD)
    assert source.cls_token is not None


def test_small_values_are_held_to_the_same():
    """A map of thousandths that is wrong by half differs by less than 1e-4 nowhere near."""
    source = network("basic, small stem")
    for norm in (source.layer4[0].bn2, source.layer4[0].downsample[1]):
        norm.weight.data *= 1e-5
        norm.bias.data *= 1e-5
    body = converted(source)
    prove(source, body)
    body.layer4[0].bn2.weight.data *= 1.5
    with pytest.raises(RunError, match="stage 4 differs"):
        prove(source, body)


class Wrapped(nn.Module):
    """A detector, as it were: its stages are a method, and it is in training mode."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def stages(self, images):
        return bodies.stages(self.body, images)


def test_a_module_is_in_evaluation_mode_meanwhile_and_as_it_was_afterwards():
    source = network("bottleneck")
    wrapped = Wrapped(converted(source)).train()
    wrapped.body.layer1.eval()
    before = {name: values.clone() for name, values in wrapped.state_dict().items()}
    source.train()
    parity(source, spec_of(source), wrapped.stages, 64, MEAN, STD)
    assert source.training
    assert wrapped.training
    assert wrapped.body.layer4[0].bn1.training
    assert not wrapped.body.layer1[0].bn1.training
    assert all(torch.equal(values, before[name]) for name, values in wrapped.state_dict().items())


CHANNELS = st.lists(st.integers(1, 6).map(lambda number: 4 * number), min_size=4, max_size=4)


@settings(max_examples=15)
@given(
    st.sampled_from(["resnet18", "resnet50"]),
    st.lists(st.integers(1, 3), min_size=4, max_size=4),
    CHANNELS,
    st.integers(0, 2),
    st.sampled_from([32, 48]),
)
def test_any_depth_and_width_converts(name, layers, channels, stem, size):
    backbone = Backbone(name, stem, {"layers": layers, "channels": channels, **(NARROW if stem else {})})
    transferred(network(backbone, size), "torchvision", size, MEAN, STD)
