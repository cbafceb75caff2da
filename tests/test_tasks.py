import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from smog.errors import UsageError
from smog.tasks import evaluate, knn, linear, protocol, settings
from smog.tasks.protocols import TASKS, Knn, Linear
from smog.tasks.result import Features, features_of


def made(seed=0, train=300, val=200, dim=12, classes=5, spread=1.0):
    """Return features in clouds, one a class, which overlap the more the wider they spread."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(classes, dim))
    labels = {name: generator.integers(0, classes, count) for name, count in (("train", train), ("val", val))}
    x = {name: centres[y] + spread * generator.normal(size=(len(y), dim)) for name, y in labels.items()}
    tensors = [torch.from_numpy(x["train"]).float(), torch.from_numpy(labels["train"])]
    return Features(*tensors, torch.from_numpy(x["val"]).float(), torch.from_numpy(labels["val"]), classes)


# ---- k-NN ----


def naive_knn(features, k, temperature):
    train, val = (x.double().numpy() for x in (features.train, features.val))
    train, val = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, val))
    scores = np.zeros((len(val), features.classes))
    for row, one in enumerate(val):
        cosine = train @ one
        for neighbour in np.argsort(-cosine)[:k]:
            scores[row, features.train_labels[neighbour]] += np.exp(cosine[neighbour] / temperature)
    return scores


@hypothesis_settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000), k=st.integers(1, 60), temperature=st.sampled_from([0.05, 0.07, 0.5, 1.0]),
    dim=st.integers(2, 12), classes=st.integers(2, 9),
)  # fmt: skip
def test_knn_is_what_a_loop_finds(seed, k, temperature, dim, classes):
    features = made(seed, train=60, val=25, dim=dim, classes=classes)
    features = dataclasses.replace(features, train=features.train.double(), val=features.val.double())
    chosen, expected = Knn(k, temperature), naive_knn(features, k, temperature)
    scores = knn.knn_scores(features, chosen).numpy()
    shares = [x / x.sum(axis=1, keepdims=True) for x in (scores, expected)]  # a factor common to a row is no matter
    np.testing.assert_allclose(*shares, rtol=1e-9, atol=1e-12)
    own = features.val_labels.numpy()[:, None]
    order = np.argsort(-expected, axis=1, kind="stable")
    found = knn.compute(features, chosen)
    assert found["top1"] == pytest.approx(100 * (order[:, :1] == own).mean())
    voted = (expected > 0).sum(axis=1) >= min(5, classes)  # fewer classes with a vote than places: any may fill them
    if voted.all():
        assert found["top5"] == pytest.approx(100 * (order[:, :5] == own).any(axis=1).mean())


def test_knn_in_single_precision_and_in_chunks_is_that_in_double(monkeypatch):
    features, chosen = made(), Knn(20, 0.07)
    monkeypatch.setattr(knn, "CHUNK", 7)
    scores = knn.knn_scores(features, chosen).numpy()
    expected = naive_knn(features, 20, 0.07)
    shares = [x / x.sum(axis=1, keepdims=True) for x in (scores, expected)]
    np.testing.assert_allclose(*shares, atol=2e-5)
    assert (scores.argmax(axis=1) == expected.argmax(axis=1)).all()


def test_the_length_of_a_feature_does_not_matter_to_knn():
    features, chosen = made(), Knn(5, 0.07)
    longer = dataclasses.replace(features, train=features.train * torch.rand(300, 1).add(0.5), val=features.val * 3)
    assert knn.compute(longer, chosen) == knn.compute(features, chosen)


@pytest.mark.parametrize("temperature", [1e-4, 1e-5])
def test_at_a_small_temperature_the_nearest_one_decides(temperature):
    features = made(spread=2.0)
    few, one = knn.compute(features, Knn(20, temperature)), knn.compute(features, Knn(1, 0.07))
    assert few["top1"] == pytest.approx(one["top1"], abs=1.0)  # two images, where neighbours are almost as near


def test_with_five_classes_or_fewer_every_top5_is_right():
    assert knn.compute(made(classes=4, spread=9.0), Knn(300, 0.07))["top5"] == 100.0


def test_as_many_neighbours_as_images_is_the_most():
    features = made()
    knn.compute(features, Knn(300, 0.07))
    with pytest.raises(UsageError, match="k=301 is above the 300"):
        knn.compute(features, Knn(301, 0.07))


# ---- linear ----


@pytest.mark.parametrize("heads", [1, 3])
def test_the_error_is_the_gradient_that_autograd_finds(heads):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, heads * 4, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 4, (7,), generator=generator)
    loss = sum(F.cross_entropy(head, y) for head in logits.split(4, dim=1))
    (expected,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(linear._error(logits.detach(), y, 4), expected, rtol=1e-12, atol=1e-12)


def test_a_head_is_trained_as_torchs_sgd_trains_it():
    features, chosen = made(), settings("linear", ["epochs=3", "batch=64"])
    weight, bias = linear.fit(features.train, features.train_labels, [(0.1, 1e-2)], 5, chosen)
    layer = torch.nn.Linear(12, 5)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    groups = [{"params": [layer.weight], "weight_decay": 1e-2}, {"params": [layer.bias]}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=chosen.momentum)
    steps = 3 * (300 // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(chosen.seed)
    for _ in range(3):
        order = torch.randperm(300, generator=generator)
        for rows in order[: 300 // 64 * 64].split(64):
            optimizer.zero_grad()
            F.cross_entropy(layer(features.train[rows]), features.train_labels[rows]).backward()
            optimizer.step()
            schedule.step()
    torch.testing.assert_close(weight, layer.weight.detach().T, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(bias, layer.bias.detach(), rtol=1e-3, atol=1e-5)


def test_heads_side_by_side_are_trained_as_each_alone():
    features, chosen = made(), settings("linear", ["epochs=2"])
    grid = [(0.01, 0.0), (0.3, 1e-2), (0.1, 1e-3)]
    weight, bias = linear.fit(features.train, features.train_labels, grid, 5, chosen)
    for i, pair in enumerate(grid):
        alone = linear.fit(features.train, features.train_labels, [pair], 5, chosen)
        mine = slice(5 * i, 5 * (i + 1))
        torch.testing.assert_close((weight[:, mine], bias[mine]), alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("seed", "spread"), [(0, 1.5), (1, 2.5)])
def test_linear_is_as_accurate_as_scikit_learns_logistic_regression(seed, spread):
    models = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is the oracle (extra dev)")
    features = made(seed, train=3000, val=4000, dim=16, spread=spread)
    mean, deviation = features.train.mean(dim=0), features.train.std(dim=0)
    oracle = models.LogisticRegression(max_iter=1000)
    oracle.fit(((features.train - mean) / deviation).numpy(), features.train_labels.numpy())
    expected = oracle.score(((features.val - mean) / deviation).numpy(), features.val_labels.numpy())
    found = linear.compute(features, settings("linear", ["epochs=10"]))
    assert 0.4 < expected < 0.95
    assert found["top1"] == pytest.approx(100 * expected, abs=1.0)


def test_the_scale_and_place_of_a_feature_do_not_matter_to_linear():
    features, chosen = made(), settings("linear", ["epochs=2"])
    scale, place = torch.linspace(0.01, 100, 12), torch.linspace(-50, 50, 12)
    moved = dataclasses.replace(features, train=features.train * scale + place, val=features.val * scale + place)
    assert linear.compute(moved, chosen)["top1"] == pytest.approx(linear.compute(features, chosen)["top1"], abs=0.5)


def test_a_feature_that_never_changes_does_no_harm():
    features, chosen = made(), settings("linear", ["epochs=2"])
    wider = [torch.cat([x, torch.full((len(x), 1), 3.0)], dim=1) for x in (features.train, features.val)]
    found = linear.compute(dataclasses.replace(features, train=wider[0], val=wider[1]), chosen)
    assert found["top1"] == pytest.approx(linear.compute(features, chosen)["top1"], abs=0.5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_labels_of_val_never_influence_what_is_chosen(seed):
    features, chosen = made(seed, spread=2.0), settings("linear", ["epochs=2"])
    permuted = features.val_labels[torch.randperm(200, generator=torch.Generator().manual_seed(seed))]
    one, other = (
        linear.compute(dataclasses.replace(features, val_labels=labels), chosen)
        for labels in (features.val_labels, permuted)
    )
    for name in ("lr", "weight_decay", "minival_top1"):
        assert one[name] == other[name]
    assert one["top1"] > other["top1"] + 10


def test_the_best_on_minival_is_chosen():
    features, rates, decays = made(spread=1.5), [1e-6, 0.1, 1.0], [0.0, 1.0]
    chosen = dataclasses.replace(settings("linear"), epochs=3, batch=32, minival=0.4)
    alone = {
        (lr, decay): linear.compute(features, dataclasses.replace(chosen, lrs=[lr], weight_decays=[decay]))
        for lr in rates
        for decay in decays
    }
    found = linear.compute(features, dataclasses.replace(chosen, lrs=rates, weight_decays=decays))
    best = max(one["minival_top1"] for one in alone.values())
    assert found["minival_top1"] == pytest.approx(best, abs=1.0)
    own = alone[found["lr"], found["weight_decay"]]
    assert own["minival_top1"] == pytest.approx(best, abs=1.0)
    assert own["top1"] == found["top1"]
    assert min(one["minival_top1"] for one in alone.values()) < best - 20


def test_the_number_is_that_of_a_head_trained_on_all_of_train():
    features, chosen = made(spread=2.0), settings("linear", ["epochs=3", "batch=32", "minival=0.5"])
    found = linear.compute(features, chosen)
    train, val = linear._standardized(features.train, features.val)
    weight, bias = linear.fit(train, features.train_labels, [(found["lr"], found["weight_decay"])], 5, chosen)
    right = (val @ weight + bias).argmax(dim=1) == features.val_labels
    assert found["top1"] == pytest.approx(100 * float(right.double().mean()))


# ---- the minival split ----


@hypothesis_settings(max_examples=40)
@given(counts=st.lists(st.integers(2, 60), min_size=2, max_size=8), share=st.floats(0.02, 0.5), seed=st.integers(0, 99))
def test_minival_is_stratified_and_disjoint(counts, share, seed):
    generator = np.random.default_rng(seed)
    labels = torch.from_numpy(generator.permutation(np.repeat(np.arange(len(counts)), counts)))
    part, minival = linear._split(labels, dataclasses.replace(settings_of_linear(), minival=share, seed=seed))
    assert sorted([*part.tolist(), *minival.tolist()]) == list(range(len(labels)))
    for number, count in enumerate(counts):
        held = int((labels[minival] == number).sum())
        assert abs(held - share * count) < 1 + 1e-6
        assert held >= 1


def settings_of_linear():
    return Linear([0.1], [0.0], 2, 32, 0.9, 0.1, 0)


def test_minival_is_the_same_for_all_runs_and_another_for_another_seed():
    labels, chosen = made().train_labels, settings_of_linear()
    torch.manual_seed(1)
    first = linear._split(labels, chosen)
    torch.manual_seed(2)
    again, other = linear._split(labels, chosen), linear._split(labels, dataclasses.replace(chosen, seed=1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1].sort().values, other[1].sort().values)


def test_minival_is_drawn_not_cut_from_the_front():
    _, minival = linear._split(torch.arange(5).repeat_interleave(100), settings_of_linear())
    assert 20 < (minival % 100).double().mean() < 80


@pytest.mark.parametrize("share", [0.9, 0.99])
def test_a_minival_that_leaves_nothing_to_train_on_is_refused(share):
    features = made(train=20)
    with pytest.raises(UsageError, match="minival"):
        linear.compute(features, dataclasses.replace(settings_of_linear(), minival=share))


# ---- settings and protocols ----

CHANGES = [
    ("knn", "k=21"), ("knn", "temperature=0.08"), ("linear", "lrs=[0.01,0.03,0.1]"), ("linear", "weight_decays=[0.0]"),
    ("linear", "epochs=31"), ("linear", "batch=128"), ("linear", "momentum=0.8"), ("linear", "minival=0.2"),
    ("linear", "seed=1"), ("diagnostics", "queries=9"), ("diagnostics", "shown=9"), ("diagnostics", "groups=9"),
]  # fmt: skip
SAME = [("knn", "k=20"), ("knn", "temperature=7e-2"), ("linear", "lrs=[1e-2,0.03,1e-1,.3]"), ("linear", "momentum=.9")]


def test_every_setting_is_among_those_changed_here():
    changed = {(task, change.split("=")[0]) for task, change in CHANGES}
    own = {task: schema for task, schema in TASKS.items() if schema.MODULE.startswith("smog.")}
    assert own.keys() == {"knn", "linear", "diagnostics"}  # those of transfer are changed in test_coco_protocol.py
    for task, schema in own.items():
        assert {field.name for field in dataclasses.fields(schema)} == {k for t, k in changed if t == task}


@pytest.mark.parametrize(("task", "change"), CHANGES)
def test_a_protocol_changes_with_every_setting(task, change):
    assert protocol(task, settings(task, [change])) != protocol(task, settings(task))


@pytest.mark.parametrize(("task", "same"), SAME)
def test_a_protocol_does_not_change_with_the_way_a_setting_is_written(task, same):
    assert protocol(task, settings(task, [same])) == protocol(task, settings(task))


def test_a_whole_number_among_rates_is_the_same_rate():
    one, other = (settings("linear", [f"lrs=[{lr}]"]) for lr in ("1", "1.0"))
    assert protocol("linear", one) == protocol("linear", other)


@pytest.mark.parametrize("task", TASKS)
def test_a_protocol_changes_with_the_version_of_its_task(task, monkeypatch):
    before = protocol(task, settings(task))
    assert before == protocol(task, settings(task))
    assert len(before) == 8
    monkeypatch.setattr(TASKS[task], "VERSION", TASKS[task].VERSION + 1)
    assert protocol(task, settings(task)) != before


@pytest.mark.parametrize(
    ("task", "override", "parts"),
    [
        ("knn", "k=0", ["k=0"]),
        ("knn", "k=1.5", ["k=1.5", "int expected"]),
        ("knn", "k=many", ["k='many'", "int expected"]),
        ("knn", "temperature=0", ["temperature=0"]),
        ("knn", "temperature=nan", ["temperature=nan"]),
        ("knn", "temperature=inf", ["temperature=inf"]),
        ("knn", "temprature=1", ["'temprature'", "nearest: temperature"]),
        ("knn", "k", ["key=value"]),
        ("linear", "epochs=0", ["epochs=0"]),
        ("linear", "batch=0", ["batch=0"]),
        ("linear", "minival=0", ["minival=0"]),
        ("linear", "minival=1", ["minival=1"]),
        ("linear", "momentum=-1", ["momentum=-1"]),
        ("linear", "momentum=1.5", ["momentum=1.5"]),
        ("linear", "momentum=nan", ["momentum=nan"]),
        ("linear", "lr=1", ["'lr'", "nearest: lrs"]),
        ("linear", "lrs=0.1", ["lrs=0.1", "list expected"]),
        ("linear", "lrs=[]", ["lrs"]),
        ("linear", "lrs=[0]", ["lrs"]),
        ("linear", "lrs=[fast]", ["lrs"]),
        ("linear", "lrs=[true]", ["lrs"]),
        ("linear", "lrs=[nan]", ["lrs"]),
        ("linear", "weight_decays=[-1]", ["weight_decays"]),
        ("linear", "weight_decays=[[1]]", ["weight_decays"]),
        ("kn", "k=1", ["'kn'", "nearest: knn"]),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(task, override, parts):
    with pytest.raises(UsageError) as caught:
        settings(task, [override])
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


# ---- of a run ----


@pytest.fixture(scope="module")
def untrained(tiny, tmp_path_factory):
    """A run of no steps, on images that are as large as the views."""
    from smog.config import with_runtime
    from smog.training import train

    config = tiny("optim.epochs=0", "data.size=16")
    return train(with_runtime(config, store=str(tmp_path_factory.mktemp("store"))))


def test_a_task_of_a_run_is_computed_once_and_says_what_it_stands_on(untrained):
    from smog.config import load
    from smog.identity import group_id, run_id
    from smog.store import read_json

    chosen = settings("knn", ["k=3"])
    path = evaluate(untrained, "knn", chosen)
    result = read_json(path)
    config = load(untrained / "config.yaml")
    assert path == untrained / "results" / f"knn@{protocol('knn', chosen)}.json"
    assert (
        (result["run_id"], result["group_id"])
        == (run_id(config), group_id(config))
        == (
            untrained.name,
            group_id(config),
        )
    )
    assert result["inputs"] == {"data": config.data.fingerprint, "train": 96, "val": 40}
    assert result["metrics"] == knn.compute(features_of(untrained, config), chosen)
    assert result["settings"] == {"k": 3, "temperature": 0.07}
    path.write_text(path.read_text().replace('"created"', '"seen"'))
    assert "seen" in read_json(evaluate(untrained, "knn", chosen))  # found, not computed again


def test_features_are_the_backbones_of_every_image_in_order(untrained):
    from smog.checkpoint import load_backbone
    from smog.config import load
    from smog.data.images import open_images
    from smog.data.views import normalize, whole_view

    config = load(untrained / "config.yaml")
    features, backbone = features_of(untrained, config), load_backbone(untrained)
    for split, found, labels in (
        ("train", features.train, features.train_labels),
        ("val", features.val, features.val_labels),
    ):
        images = open_images(config, split)
        for index in (0, 1, len(images) - 1):
            view = torch.from_numpy(whole_view(images[index], 16).copy())[None]
            with torch.inference_mode():
                expected = backbone(normalize(view, torch.device("cpu")))[0]
            torch.testing.assert_close(found[index], expected, rtol=2e-2, atol=2e-2)  # bf16 where the hardware has it
            assert labels[index] == images.labels[index]


def test_a_run_that_is_not_finished_is_refused(untrained, tmp_path):
    import shutil

    cut = shutil.copytree(untrained, tmp_path / untrained.name)
    (cut / "done").unlink()
    shutil.rmtree(cut / "results", ignore_errors=True)
    with pytest.raises(UsageError, match="not finished"):
        evaluate(cut, "knn", settings("knn"))
    assert not (cut / "results").exists()
