"""The cost model against published figures, against real steps of small networks, and at the command line."""

import json
import time
from collections import Counter

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from smog import compose
from smog.__main__ import main as smog
from smog.config import CONF
from smog.cost import LABEL, cost, crops_seen, forward_flops, micro_batch, train_images
from smog.cost_text import as_text
from smog.data.sources import with_fingerprint
from smog.devices import CORE, DEVICES, UTILISATION
from smog.errors import UsageError
from smog.methods.smog import Smog
from smog.models import build_backbone
from smog.optim import Clock, build_optimizer
from smog.schema import Backbone
from smog.training import Run, train

LARGE = ("data=imagefolder", "data.train_images=1281167", "backbone=resnet50", "optim.batch=256")
LOCAL = ("views.local_crops=3", "views.local_size=8")
DIRECTIONS = ("both", "alternate", "one_way")


def timm(name: str, *overrides: str) -> tuple[str, ...]:
    return (*LARGE, f"backbone.name={name}", *overrides)


# ---- published figures ----


PUBLISHED = {  # GMACs at 224 px and parameters of the classifier's network: torchvision's and the papers' tables
    "resnet50": (4.09, 25_557_032 - 2048 * 1000 - 1000),
    "deit_small_patch16_224": (4.6, 22_050_664 - 384 * 1000 - 1000),
    "swin_tiny_patch4_window7_224": (4.5, 28_288_354 - 768 * 1000 - 1000),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_flops_and_parameters_are_the_published_ones(name: str) -> None:
    gmacs, parameters = PUBLISHED[name]
    found = cost(compose(timm(name)))
    assert found["flops"]["backbone_forward"][224] == pytest.approx(2e9 * gmacs, rel=0.03)
    assert found["parameters"]["backbone"] == parameters


def test_smog_on_imagenet_has_the_effective_epochs_that_are_reported() -> None:
    """POA, table 7: 400 epochs of multi-crop count as 1,200."""
    plan = cost(compose([*LARGE, "views.local_crops=6", "optim.epochs=400", "optim.batch=4096"]))["schedule"]
    assert plan["effective_epochs"] == pytest.approx(1200, rel=0.05)
    assert plan["steps"] == 400 * (1281167 // 4096)
    assert plan["crops_seen"] == 8 * plan["images_seen"]


def test_the_rate_of_the_core_is_what_was_measured() -> None:
    small = Backbone(**yaml.safe_load((CONF / "backbone" / "resnet10_small.yaml").read_text()))
    with torch.device("meta"):
        network = build_backbone(small, 32)
    step = 128 * 3 * forward_flops(network, compose(), 32)
    assert CORE.rates["bf16"] == pytest.approx(step / 0.062 / 1e12, rel=0.01)
    assert CORE.rates["fp32"] == pytest.approx(step / 0.107 / 1e12, rel=0.01)


def test_the_utilisation_is_that_of_nvidias_own_training_of_resnet50() -> None:
    peaks = {device.name.split()[1]: device.rates for device in DEVICES[:-1]}
    image = 3 * 8.2e9
    assert UTILISATION["bf16"] == pytest.approx(2470 * image / 1e12 / peaks["A100"]["bf16"], rel=0.2)
    assert UTILISATION["fp16"] == pytest.approx(1200 * image / 1e12 / peaks["V100"]["fp16"], rel=0.2)
    assert UTILISATION["fp32"] == pytest.approx(367 * image / 1e12 / peaks["V100"]["fp32"], rel=0.2)


# ---- real steps of small networks ----


def views(config, images: int) -> list[torch.Tensor]:
    v = config.views
    sizes = [(v.global_crops, v.size), (v.local_crops, v.local_size)]
    return [torch.randn(crops, images, 3, side, side) for crops, side in sizes if crops]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("more", [(), LOCAL, ("views.global_crops=3",)], ids=["two", "local", "three"])
def test_the_crops_of_each_branch_are_those_that_the_method_runs(tiny, direction: str, more: tuple[str, ...]) -> None:
    config = tiny(f"method.direction={direction}", *more)
    method, seen = Smog(config), {"online": Counter(), "momentum": Counter()}

    def count(name: str):
        return lambda module, inputs: seen[name].update({inputs[0].shape[-1]: len(inputs[0]) // 4})

    method.backbone.register_forward_pre_hook(count("online"))
    method.momentum_branch[0].register_forward_pre_hook(count("momentum"))
    method(views(config, 4), Clock(0, 10, 5))
    assert crops_seen(config) == (seen["online"], seen["momentum"])


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("more", [(), LOCAL], ids=["two", "local"])
def test_the_flops_of_a_step_are_those_of_a_real_one(tiny, direction: str, more: tuple[str, ...]) -> None:
    """The real step is a little cheaper: no gradient is taken of the images."""
    config = tiny(f"method.direction={direction}", "method.regroup_interval=0", *more)
    with FlopCounterMode(display=False) as counter:
        Smog(config)(views(config, 16), Clock(0, 10, 5))[0].backward()
    assert config.optim.batch == 16
    assert 0.85 < counter.get_total_flops() / cost(config)["flops"]["step"] <= 1.01


def saved(method: Smog, config, images: int, precision: str) -> int:
    """Bytes that autograd really holds after a forward pass, each memory once, without weights and images."""
    crops = views(config, images)
    known = {t.untyped_storage().data_ptr() for t in [*method.parameters(), *method.buffers(), *crops]}
    held = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    half = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with half, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = method(crops, Clock(0, 10, 5))
    total = sum(t.untyped_storage().nbytes() for address, t in held.items() if address not in known)
    del loss
    return total


VIT = ("backbone=vit_small", "views.size=32", "backbone.args.depth=2")
CONVNEXT = ("backbone=convnext_small", "views.size=32")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("more", [(), LOCAL, VIT, CONVNEXT], ids=["resnet", "local", "vit", "convnext"])
def test_activations_are_what_autograd_really_holds(tiny, precision: str, more: tuple[str, ...]) -> None:
    """Within 3 %; shapes, casts and fused attention are the real ones, only the update of the groups is simplified."""
    config = tiny("optim.batch=48", f"optim.precision={precision}", *more)
    memory = cost(config)["memory"][precision]
    real = saved(Smog(config).to(memory_format=torch.channels_last), config, 48, precision)
    assert memory["activations"] + memory["fixed"] == pytest.approx(real, rel=0.03)


def test_memory_is_linear_in_the_batch_and_in_nothing_else(tiny) -> None:
    one, two, three = (cost(tiny(f"optim.batch={n}"))["memory"]["bf16"] for n in (16, 32, 48))
    assert three["total"] - two["total"] == two["total"] - one["total"] > 0
    growing = {name for name in one if one[name] != two[name]}
    assert growing == {"activations", "images", "total"}
    assert two["activations"] == 2 * one["activations"]


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_state_of_the_optimiser_is_the_real_one(tiny, name: str, momentum: float) -> None:
    config = tiny(f"optim.name={name}", f"optim.momentum={momentum}")
    method = Smog(config)
    optimizer = build_optimizer(method, config.optim)
    method(views(config, 4), Clock(0, 10, 5))[0].backward()
    optimizer.step()
    state = [value for values in optimizer.state.values() for value in values.values() if torch.is_tensor(value)]
    real = sum(value.numel() * value.element_size() for value in state if value.dim())
    gradients = sum(p.grad.numel() * p.grad.element_size() for p in method.parameters() if p.grad is not None)
    memory = cost(config)["memory"]["bf16"]
    assert (memory["optimizer"], memory["gradients"]) == (real, gradients)


def test_weights_and_groups_are_the_real_ones(tiny) -> None:
    config = tiny("method.predictor=both")
    state = Smog(config).state_dict()
    memory = cost(config)["memory"]["bf16"]
    parts = sum(memory[name] for name in ("weights", "momentum_copy", "groups", "cache"))
    assert parts == sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def test_steps_are_those_of_the_trainer(tiny, in_store) -> None:
    config = with_fingerprint(in_store(tiny("optim.epochs=2.5", "data.train_images=90")))
    assert cost(config)["schedule"]["steps"] == Run(config, train(tiny_end(config))).steps


def tiny_end(config):
    """The same run with no epochs, so that its folder is there at once."""
    from dataclasses import replace

    return replace(config, optim=replace(config.optim, epochs=0.0))


# ---- what it says of devices ----


def test_devices_share_the_work() -> None:
    one, eight = (cost(compose([*LARGE, "optim.batch=512"]), gpus) for gpus in (1, 8))
    assert eight["micro_batch"] == 64
    assert eight["memory"]["bf16"]["activations"] * 8 == one["memory"]["bf16"]["activations"]
    assert [row["hours"] for row in eight["devices"]] == pytest.approx([row["hours"] / 8 for row in one["devices"]])


def test_accumulation_saves_memory_and_no_work() -> None:
    whole, cut = (cost(compose([*LARGE, f"optim.accumulate={n}"])) for n in (1, 4))
    assert cut["memory"]["bf16"]["activations"] * 4 == whole["memory"]["bf16"]["activations"]
    assert cut["flops"] == whole["flops"]


def test_a_device_without_the_precision_has_no_hours() -> None:
    rows = {row["name"]: row for row in cost(compose([*LARGE, "optim.precision=bf16"]))["devices"]}
    assert rows["NVIDIA V100 SXM2 32 GB"]["hours"] is None
    assert rows["NVIDIA A100 SXM 80 GB"]["hours"] > 0
    by_itself = {row["name"]: row["precision"] for row in cost(compose(LARGE))["devices"]}
    assert by_itself["NVIDIA V100 SXM2 32 GB"] == "fp32"
    assert set(by_itself.values()) == {"bf16", "fp32"}


def test_what_does_not_fit_is_said() -> None:
    rows = cost(compose([*LARGE, "optim.batch=1024"]))["devices"]
    assert {row["name"]: row["fits"] for row in rows}["NVIDIA RTX 4090"] is False


@pytest.mark.parametrize("name", ["resnet50", "swin_tiny_patch4_window7_224", "deit_small_patch16_224"])
def test_large_networks_with_multi_crop_take_seconds(name: str) -> None:
    sized = () if name == "resnet50" else ("backbone.args.dynamic_img_size=true",)
    config = compose(timm(name, "views.local_crops=6", *sized))
    began = time.process_time()
    assert set(cost(config)["flops"]["backbone_forward"]) == {224, 96}
    assert time.process_time() - began < 20  # 1 to 4 s alone on a core


def test_a_network_that_takes_no_local_crops_is_named() -> None:
    with pytest.raises(UsageError, match=r"deit_small_patch16_224 at 96 px: .*96"):
        cost(compose(timm("deit_small_patch16_224", "views.local_crops=6")))


# ---- the number of images ----


@pytest.mark.parametrize(
    ("overrides", "images"),
    [
        (["data=garments", "data.train_images=0"], 8_000),
        (["data=garments", "data.train_images=300"], 300),
        (["data=cifar10", "data.train_images=0"], 50_000),
        (["data=cifar10", "data.train_images=0", "data.root=nowhere"], 50_000),
        (["data=imagefolder", "data.root=/data/ImageNet"], 1_281_167),
        (["data=imagefolder", "data.root=/data/imagenet-100"], 126_689),
        (["data=imagefolder", "data.root=/data/imagenette2-320"], 9_469),
    ],
)
def test_the_number_of_images_is_known_without_them(overrides: list[str], images: int) -> None:
    assert train_images(compose(overrides))[0] == images


def test_images_that_are_there_are_counted(cifar_zip) -> None:
    found, origin = train_images(compose(["data=cifar10", "data.train_images=0", f"data.root={cifar_zip}"]))
    assert (found, origin) == (50_000, str(cifar_zip))


def test_an_unknown_number_of_images_is_asked_for() -> None:
    with pytest.raises(UsageError, match=r"data\.train_images=N"):
        train_images(compose(["data=imagefolder"]))


def test_a_batch_that_devices_can_not_share_is_refused() -> None:
    with pytest.raises(UsageError, match=r"optim\.batch=128 is no multiple of gpus=3 x optim\.accumulate=2"):
        micro_batch(compose(["optim.accumulate=2"]), 3)


# ---- the command ----


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_one_json_document_and_writes_nothing(here, capsys) -> None:
    words = ["train", "recipe=smoke", "action=cost", "gpus=2", "format=json", "store=runs", "data=cifar10"]
    assert smog(words) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert (found["what"], found["gpus"], found["recipe"]) == (LABEL, 2, "smoke")
    assert {row["name"] for row in found["devices"]} == {device.name for device in DEVICES}
    assert all(row["source"] for row in found["devices"])


def test_for_people_it_says_first_that_it_is_a_model(here, capsys) -> None:
    assert smog(["train", "recipe=smoke", "action=cost"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("cost model, not measured: smoke, gpus=1, 32 images at once on each\n")
    assert "24 steps of 32 images: 3 epochs" in out


def test_every_row_has_its_source_and_a_readable_size() -> None:
    text = as_text(cost(compose([*LARGE, "optim.precision=fp16"])))
    assert "8.17 GFLOP at 224 px" in text
    assert "one AMD EPYC core, AVX-512 BF16  -" in text


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["action=cots"], ["'cots'", "nearest: cost"]),
        (["action=cost", "gpus=0"], ["gpus='0'"]),
        (["action=cost", "gpus=two"], ["gpus='two'"]),
        (["action=cost", "format=jsn"], ["'jsn'", "nearest: json"]),
        (["action=cost", "optim.bath=3"], ["'optim.bath'", "optim.batch"]),
        (["action=cost", "backbone.name=resnet1"], ["resnet1", "nearest"]),
        (["action=cost", "optim.batch=9000"], ["optim.batch=9000", "8000"]),
        (["gpus=2"], ["'gpus'"]),
    ],
)
def test_wrong_use_is_one_line(here, capsys, words: list[str], parts: list[str]) -> None:
    assert smog(["train", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert all(part in err for part in parts)
