import dataclasses
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from made_groups import made_bank, normal

from smog import checkpoint
from smog.config import load
from smog.errors import UsageError
from smog.methods.smog import Smog
from smog.records import read_lines
from smog.store import read_json
from smog.tasks import diagnostics, evaluate, result, settings
from smog.tasks.diagnostics import feature_std, groups_of, neighbours, nmi, rankme, sheets, spread
from smog.tasks.protocols import Diagnostics

CHOSEN = Diagnostics(queries=4, shown=3, groups=3)
SEEDS = st.integers(0, 10_000)
RUN = (  # the momentum branch stays far behind the online one
    "data.size=16", "optim.epochs=1.5", "method.num_groups=12", "method.reset_momentum_encoder=false",
    "method.encoder_momentum=0.99",
)  # fmt: skip


# ---- rank and spread ----


def naive_rankme(x):
    values = np.linalg.svd(x.double().numpy(), compute_uv=False)
    share = values / values.sum() + 1e-7
    return np.exp(-(share * np.log(share)).sum())


@hypothesis_settings(max_examples=30)
@given(seed=SEEDS, n=st.integers(2, 40), d=st.integers(1, 40), rank=st.integers(1, 8))
def test_rankme_is_that_of_numpys_singular_values(seed, n, d, rank):
    x = normal(seed, n, min(rank, d)) @ normal(seed + 1, min(rank, d), d)
    assert rankme(x.float()) == pytest.approx(naive_rankme(x.float()), rel=1e-4)


def test_rankme_of_even_directions_is_their_number_and_of_one_point_is_one():
    assert rankme(3 * torch.eye(20)[:, :12]) == pytest.approx(12, rel=1e-5)
    assert rankme(torch.ones(30, 8)) == pytest.approx(1, abs=2e-5)
    assert rankme(torch.zeros(30, 8)) == pytest.approx(1, abs=2e-5)


def test_a_chunk_is_no_matter(monkeypatch):
    x = normal(0, 50, 7).float()
    before = rankme(x), rankme(x.T.contiguous()), feature_std(x), neighbours(x, CHOSEN)
    monkeypatch.setattr(diagnostics, "CHUNK", 3)
    after = rankme(x), rankme(x.T.contiguous()), feature_std(x), neighbours(x, CHOSEN)
    assert after[:3] == pytest.approx(before[:3], rel=1e-10)
    assert after[3] == before[3]


@hypothesis_settings(max_examples=20)
@given(seed=SEEDS, n=st.integers(1, 30), d=st.integers(1, 9))
def test_feature_std_is_numpys(seed, n, d):
    x = (normal(seed, n, d) + 1).numpy()
    expected = (x / np.linalg.norm(x, axis=1, keepdims=True)).std(axis=0).mean() * np.sqrt(d)
    assert feature_std(torch.from_numpy(x)) == pytest.approx(expected, abs=1e-7)


def test_feature_std_of_an_even_sphere_is_one_and_of_a_collapse_nothing():
    assert feature_std(normal(0, 20_000, 16)) == pytest.approx(1, abs=0.01)
    assert feature_std(normal(0, 1, 16).expand(500, 16).float()) == pytest.approx(0, abs=1e-6)
    assert feature_std(torch.zeros(5, 4)) == 0


# ---- groups ----


@hypothesis_settings(max_examples=40)
@given(seed=SEEDS, n=st.integers(1, 60), groups=st.integers(1, 12), classes=st.integers(1, 5))
def test_nmi_is_scikit_learns(seed, n, groups, classes):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle (extra dev)")
    generator = np.random.default_rng(seed)
    own, labels = generator.integers(0, groups, n), generator.integers(0, classes, n)
    expected = metrics.normalized_mutual_info_score(labels, own, average_method="arithmetic")
    assert nmi(torch.from_numpy(own), torch.from_numpy(labels)) == pytest.approx(expected, abs=1e-9)


def test_nmi_of_the_same_partition_by_other_names_is_one():
    own = torch.tensor([4, 4, 0, 2, 2, 2])
    assert nmi(own, torch.tensor([1, 1, 2, 0, 0, 0])) == pytest.approx(1)


def test_the_spread_over_groups_is_that_of_their_counts():
    bank = made_bank(0, groups=5)
    own = torch.tensor([0, 0, 0, 0, 2, 2, 3, 3])
    share = np.array([4, 2, 2]) / 8
    found = spread(bank, normal(1, 8, 4).float(), own)
    assert found["group_entropy"] == pytest.approx(-(share * np.log(share)).sum() / np.log(5))
    assert found["group_dead"] == pytest.approx(2 / 5)


def test_groups_no_longer_active_are_not_dead():
    bank = made_bank(0, groups=5)
    bank.active = 4
    assert spread(bank, normal(1, 3, 4).float(), torch.tensor([0, 1, 2]))["group_dead"] == pytest.approx(1 / 4)


# ---- pictures ----


@hypothesis_settings(max_examples=25)
@given(seed=SEEDS, n=st.integers(2, 25), queries=st.integers(1, 30), shown=st.integers(1, 30))
def test_neighbours_are_those_that_a_loop_finds(seed, n, queries, shown):
    x = normal(seed, n, 5)
    found = neighbours(x, Diagnostics(queries, shown, 1))
    asked = [one["query"] for one in found]
    assert len(asked) == len(set(asked)) == min(n, queries)
    assert asked == sorted(asked)
    unit = x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True)
    for one in found:
        cosine = {other: unit[one["query"]] @ unit[other] for other in range(n) if other != one["query"]}
        assert one["nearest"] == sorted(cosine, key=cosine.get, reverse=True)[:shown]
        assert all(type(index) is int for index in (one["query"], *one["nearest"]))


def test_queries_go_from_the_first_to_the_last_image_and_equal_ones_come_in_order():
    found = neighbours(torch.ones(41, 3), Diagnostics(5, 2, 1))
    assert [one["query"] for one in found] == [0, 10, 20, 30, 40]
    assert [one["nearest"] for one in found[:2]] == [[1, 2], [0, 1]]


def test_groups_are_shown_from_the_largest_to_the_smallest_that_fills_a_line():
    bank, own = made_bank(0, groups=6), torch.tensor([1] * 4 + [5] * 9 + [0] * 6 + [3] * 2 + [4] * 3)
    z = normal(1, len(own), 4)
    found = sheets(bank, z, own, Diagnostics(1, 3, 3))
    assert [(one["group"], one["count"]) for one in found] == [(5, 9), (1, 4), (4, 3)]  # of 9, 6, 4 and 3; 2 are few
    for one in found:
        cosine = (F.normalize(z, dim=1) @ F.normalize(bank.groups[one["group"]], dim=0)).tolist()
        members = [index for index in range(len(own)) if own[index] == one["group"]]
        assert one["nearest"] == sorted(members, key=lambda index: -cosine[index])[:3]
        assert all(type(value) is int for value in (one["group"], one["count"], *one["nearest"]))
    assert sheets(bank, z, own, Diagnostics(1, 10, 3)) == []


# ---- settings ----


@pytest.mark.parametrize("override", ["queries=0", "shown=0", "groups=0", "shown=-1"])
def test_a_wrong_setting_is_named(override):
    with pytest.raises(UsageError, match=f"{override}: must be at least 1"):
        settings("diagnostics", [override])


# ---- of a run ----


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A function from overrides to a run of some steps, trained once."""
    from smog.config import with_runtime
    from smog.training import train

    store, kept = str(tmp_path_factory.mktemp("store")), {}

    def one(*overrides):
        if overrides not in kept:
            config = tiny(*RUN, *overrides)
            kept[overrides] = train(with_runtime(config, store=store))
        return kept[overrides]

    return one


def computed(folder, monkeypatch):
    """The diagnostics of a run, of features that are extracted anew."""
    monkeypatch.setattr(result, "_last", None)
    return diagnostics.of_run(folder, load(folder / "config.yaml"), CHOSEN)


def by_hand(folder):
    """Groups and images in the momentum branch of a checkpoint, one image at a time."""
    from smog.data.images import open_images
    from smog.data.views import normalize, whole_view

    config = load(folder / "config.yaml")
    method = Smog(config)
    method.load_state_dict(checkpoint.read(folder / checkpoint.FILE)["method"])
    images = open_images(config, "val")
    views = [torch.from_numpy(whole_view(images[index], config.views.size).copy()) for index in range(len(images))]
    with torch.no_grad():
        z = [method.momentum_branch.eval()(normalize(view[None], torch.device("cpu"))) for view in views]
    return method, F.normalize(torch.cat(z).double(), dim=1) @ F.normalize(method.bank.groups.double(), dim=1).T, images


@pytest.mark.parametrize("override", ["optim.precision=fp32", "method.predictor=both"])
def test_an_image_belongs_to_the_group_that_the_momentum_branch_gives_it(trained, override):
    folder = trained("optim.precision=fp32", override)
    method, cosine, images = by_hand(folder)
    parts = 3 if override == "method.predictor=both" else 2
    assert len(method.momentum_branch) == parts
    bank, z = groups_of(folder, load(folder / "config.yaml"), 96)
    best = cosine.topk(2, dim=1)
    clear = best.values[:, 0] - best.values[:, 1] > 1e-4  # where rounding decides, either is right
    assert clear.sum() > 30
    assert torch.equal(bank.assign(z)[clear], best.indices[:, 0][clear])
    assert len(z) == len(images)


def test_a_run_of_smog_has_all_the_numbers_and_pictures(trained, monkeypatch):
    folder = trained("optim.precision=fp32")
    found = computed(folder, monkeypatch)
    assert found.metrics.keys() == {"rankme", "feature_std", "group_entropy", "group_dead", "nmi"}
    _, cosine, images = by_hand(folder)
    own = cosine.argmax(dim=1)
    share = np.bincount(own, minlength=12) / len(own)
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum() / np.log(12)
    assert found.metrics["group_entropy"] == pytest.approx(entropy, abs=0.05)  # an image or two may be on a border
    assert found.metrics["nmi"] == pytest.approx(nmi(own, torch.from_numpy(images.labels)), abs=0.05)
    assert found.inputs == {"data": load(folder / "config.yaml").data.fingerprint, "val": 40}
    assert [len(one["nearest"]) for one in found.more["neighbours"]] == [3] * 4
    assert all(one["count"] >= 3 == len(one["nearest"]) for one in found.more["groups"])


def test_numbers_and_pictures_are_the_same_each_time(trained, monkeypatch):
    folder = trained("optim.precision=fp32")
    first = computed(folder, monkeypatch)
    torch.manual_seed(99)
    assert computed(folder, monkeypatch) == first


def test_the_online_branch_has_no_say_in_the_groups(trained, monkeypatch, tmp_path):
    folder = trained("optim.precision=fp32")
    before, other = computed(folder, monkeypatch), shutil.copytree(folder, tmp_path / folder.name)
    content = checkpoint.read(other / checkpoint.FILE)
    for name, value in content["method"].items():
        if name.startswith(("backbone.", "projector.", "predictor.")) and value.dim() > 1:
            value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(0)) / 9)
    torch.save(content, other / checkpoint.FILE)
    after = computed(other, monkeypatch)
    for name in ("group_entropy", "group_dead", "nmi"):
        assert after.metrics[name] == before.metrics[name]
    assert after.more["groups"] == before.more["groups"]
    assert after.metrics["rankme"] != pytest.approx(before.metrics["rankme"], rel=1e-3)


def test_as_many_groups_count_as_the_last_step_had(trained, monkeypatch):
    growing = "method.start_groups=4", "method.growth_epochs=3", "method.regroup_interval=3"
    folder = trained(*growing)
    *_, last = read_lines(folder / "metrics.jsonl")
    bank, _ = groups_of(folder, load(folder / "config.yaml"), 96)
    assert bank.active == last["group_active"] < 12
    assert all(one["group"] < bank.active for one in computed(folder, monkeypatch).more["groups"])


def test_raw_pixels_have_no_groups(trained):
    folder = trained("backbone=pixels", "optim.epochs=0")
    found = read_json(evaluate(folder, "diagnostics", settings("diagnostics")))
    assert found["metrics"].keys() == {"rankme", "feature_std"}
    assert len(found["neighbours"]) == 8
    assert "groups" not in found


def test_the_task_is_computed_once(trained):
    folder, chosen = trained("optim.precision=fp32"), settings("diagnostics", ["shown=2"])
    path = evaluate(folder, "diagnostics", chosen)
    path.write_text(path.read_text().replace('"created"', '"seen"'))
    assert "seen" in read_json(evaluate(folder, "diagnostics", chosen))
    assert {one["query"] for one in read_json(path)["neighbours"]} <= set(range(40))
    assert dataclasses.asdict(chosen) == read_json(path)["settings"]
