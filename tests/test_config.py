import re
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, get_type_hints

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from smog.config import Base, _is_derived, build, compose, dump, key_names, load, options, with_runtime
from smog.errors import UsageError
from smog.identity import as_dict, group_id, run_id
from smog.schema import Config

RUNTIME = {
    "data.root", "data.download", "recipe", "runtime.store", "runtime.device", "runtime.workers", "runtime.threads",
    "runtime.compile", "runtime.loggers", "runtime.log_every", "runtime.checkpoint_every", "runtime.keep_images",
}  # fmt: skip
FINITE = st.floats(allow_nan=False, allow_infinity=False)
VALUES = {
    int: st.integers(-(2**40), 2**40),
    float: FINITE,
    bool: st.booleans(),
    str: st.text(max_size=8),
    list[str]: st.lists(st.text(max_size=4), max_size=2),
    dict[str, Any]: st.dictionaries(st.text(max_size=3), st.integers() | FINITE | st.text(max_size=3), max_size=3),
}


def leaves(schema: type, prefix: str = "", runtime: bool = False):
    """Yield (dotted name, type, is runtime) of every value of a schema."""
    kinds = get_type_hints(schema)
    for field in fields(schema):
        name, kind, apart = prefix + field.name, kinds[field.name], runtime or bool(field.metadata.get("runtime"))
        if is_dataclass(kind):
            yield from leaves(kind, f"{name}.", apart)
        else:
            yield name, kind, apart


SCIENCE = [(name, kind) for name, kind, apart in leaves(Config) if not apart]
APART = [(name, kind) for name, kind, apart in leaves(Config) if apart]


@cache
def base() -> Config:
    config = compose(["recipe=smoke"])
    return replace(config, data=replace(config.data, fingerprint="0" * 12))


def get(node, name):
    for part in name.split("."):
        node = getattr(node, part)
    return node


def put(node, name, value):
    first, _, rest = name.partition(".")
    return replace(node, **{first: put(getattr(node, first), rest, value) if rest else value})


def identified(overrides) -> str:
    return run_id(compose([*overrides, "data.fingerprint=abcdef"]))


# ---- identity ----


def test_only_places_and_speeds_are_runtime():
    assert {name for name, _ in APART} == RUNTIME


@pytest.mark.parametrize(("name", "kind"), APART)
@settings(max_examples=10)
@given(data=st.data())
def test_a_runtime_value_never_changes_an_identity(name, kind, data):
    changed = put(base(), name, data.draw(VALUES[kind]))
    assert (run_id(changed), group_id(changed)) == (run_id(base()), group_id(base()))


@pytest.mark.parametrize(("name", "kind"), SCIENCE)
@settings(max_examples=10)
@given(data=st.data())
def test_every_scientific_value_changes_the_identity(name, kind, data):
    value = data.draw(VALUES[kind])
    assume(value != get(base(), name) and (name != "data.fingerprint" or value))
    changed = put(base(), name, value)
    assert run_id(changed) != run_id(base())
    assert (group_id(changed) == group_id(base())) == (name == "seed")


def test_identities_are_twelve_hex_digits_and_stay_what_they_are():
    for identity in (run_id(base()), group_id(base())):
        assert len(identity) == 12
        assert set(identity) <= set("0123456789abcdef")
    assert run_id(build(Config, as_dict(base()))) == run_id(base())


def test_data_that_were_not_looked_at_have_no_identity():
    with pytest.raises(UsageError, match="with_fingerprint"):
        run_id(put(base(), "data.fingerprint", ""))


OVERRIDES = [
    "recipe=smoke", "data=cifar10", "backbone=resnet18", "seed=3", "method.num_groups=20", "optim.lr=0.3",
    "views.first.blur=0.25", "backbone.args.drop_rate=0.1",
]  # fmt: skip


@settings(max_examples=6)
@given(order=st.permutations(OVERRIDES))
def test_the_order_of_overrides_does_not_matter(order):
    assert identified(order) == identified(OVERRIDES)


@settings(max_examples=6)
@given(number=st.floats(1e-7, 1.0), form=st.sampled_from(["{!r}", "{:.17e}", "{:.16E}", "{:.40f}"]))
def test_the_way_a_number_is_written_does_not_matter(number, form):
    keys = ("method.temperature", "method.encoder_momentum", "views.flip", "optim.lr")
    config = compose([f"{key}={form.format(number)}" for key in keys])
    assert [get(config, key) for key in keys] == [float(form.format(number))] * len(keys)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("optim.lr=1e-1", "optim.lr=0.1"),
        ("optim.lr=.1", "optim.lr=0.10"),
        ("optim.epochs=5", "optim.epochs=5.0"),
        ("method.temperature=1", "method.temperature=1.0"),
        ("optim.epochs=5e0", "optim.epochs=5"),
    ],
)
def test_the_same_number_written_twice_is_one_run(one, other):
    assert identified([one]) == identified([other])


def test_naming_a_default_is_the_same_run():
    assert identified([]) == identified(["recipe=demo", "data=garments", "method=smog", "seed=0"])


def test_the_last_of_two_values_counts():
    assert compose(["seed=1", "seed=2"]).seed == 2


def test_what_is_typed_stands_above_the_recipe():
    assert compose(["optim.batch=64", "recipe=smoke"]).optim.batch == 64


@pytest.mark.parametrize("recipe", options("recipe"))
def test_every_recipe_composes_and_keeps_its_name(recipe):
    assert compose([f"recipe={recipe}"]).recipe == recipe


@pytest.mark.parametrize("group", ["data", "backbone", "method"])
def test_every_option_of_a_group_composes(group):
    assert len({identified([f"{group}={name}"]) for name in options(group)}) == len(options(group))


def test_the_order_of_free_keys_does_not_matter():
    one, other = (put(base(), "backbone.args", dict(items)) for items in ([("a", 1), ("b", 2)], [("b", 2), ("a", 1)]))
    assert run_id(one) == run_id(other)


def test_numbers_that_yaml_reads_as_text_are_numbers():
    values = as_dict(base())
    values["optim"]["lr"] = "1e-4"
    assert build(Config, values).optim.lr == 1e-4


# ---- files ----


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("config") / "config.yaml"


@settings(max_examples=40)
@given(root=st.text(), store=st.text(), lr=st.floats(0, 1e9, exclude_min=True), seed=st.integers(0, 2**31 - 1))
def test_a_dumped_configuration_is_loaded_as_it_was(file, root, store, lr, seed):
    config = put(put(put(base(), "data.root", root), "optim.lr", lr), "seed", seed)
    config = with_runtime(config, store=store)
    file.write_text(dump(config))
    assert load(file) == config
    assert run_id(load(file)) == run_id(config)


@pytest.mark.parametrize(
    "content", ["", "[1, 2]", "a: [", "seed: 1", "seed: {a: 1", "- &a [*a", "\tx"], ids=lambda text: repr(text)
)
def test_a_file_that_is_no_configuration_is_refused_in_one_line(file, content):
    file.write_text(content)
    refused(load, file)


def test_a_stored_configuration_with_a_key_too_much_is_refused(file):
    file.write_text(dump(base()) + "sead: 1\n")
    assert "'sead'; nearest: seed" in refused(load, file)


def test_a_stored_configuration_that_lacks_a_key_is_refused(file):
    file.write_text(dump(base()).replace("  temperature: 0.1\n", ""))
    assert "method.temperature" in refused(load, file)


def test_a_missing_file_is_named(tmp_path):
    assert str(tmp_path / "none.yaml") in refused(load, tmp_path / "none.yaml")


# ---- errors ----


def refused(function, *arguments) -> str:
    with pytest.raises(UsageError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("method.num_group=3", ["method.num_group'", "nearest: method.num_groups"]),
        ("optim.learning_rate=1", ["optim.learning_rate"]),
        ("+seed=1", ["+seed", "nearest: seed"]),
        ("seed", ["key=value", "nearest: seed"]),
        ("recipe=smok", ["recipe 'smok'", "nearest: smoke"]),
        ("data=cifar", ["data 'cifar'", "nearest: cifar10"]),
        ("backbone=resnet18_smal", ["backbone 'resnet18_smal'", "nearest: resnet18_small"]),
        ("method=smo", ["method 'smo'", "smog"]),
        ("data.name=imagefoldr", ["data.name='imagefoldr'", "nearest: imagefolder"]),
        ("optim.name=sdg", ["optim.name='sdg'", "nearest: sgd"]),
        ("optim.precision=fp8", ["optim.precision='fp8'", "nearest: ", "fp16"]),
        ("seed=abc", ["seed='abc'", "int expected", "str"]),
        ("seed=1.5", ["seed=1.5", "int expected"]),
        ("seed=true", ["seed=True", "int expected"]),
        ("seed=-1", ["seed=-1"]),
        ("method.reset_momentum_encoder=1", ["method.reset_momentum_encoder=1", "bool expected"]),
        ("method.direction=bot", ["method.direction='bot'", "nearest: both"]),
        ("optim.lr=fast", ["optim.lr='fast'", "float expected"]),
        ("backbone.args=5", ["backbone.args=5", "dict expected"]),
        ("method.temperature=0", ["method.temperature=0.0", "above 0"]),
        ("method.temperature=-0.1", ["method.temperature=-0.1", "above 0"]),
        ("method.group_momentum=1.1", ["method.group_momentum=1.1", "from 0 to 1"]),
        ("method.encoder_momentum=-0.1", ["method.encoder_momentum=-0.1", "from 0 to 1"]),
        ("method.num_groups=1", ["method.num_groups=1", "at least 2"]),
        ("method.num_groups=9000", ["method.num_groups=9000", "method.cache_size=8192"]),
        ("method.regroup_interval=-1", ["method.regroup_interval=-1"]),
        ("optim.batch=1", ["optim.batch=1", "BatchNorm"]),
        ("optim.lr=nan", ["optim.lr=nan", "finite"]),
        ("optim.lr=inf", ["optim.lr=inf", "finite"]),
        ("method.temperature=nan", ["method.temperature=nan", "finite"]),
        ("runtime.checkpoint_every=-inf", ["runtime.checkpoint_every=-inf", "finite"]),
        ("backbone.args.drop_rate=nan", ["backbone.args", "finite"]),
        ("backbone.args.layers.x=3", ["backbone.args.layers"]),
        ("views.first.scale_min=0", ["views.first.scale_min=0.0"]),
        ("views.second.scale_max=1.5", ["views.second.scale_m"]),
        ("views.first.gray=-1", ["views.first.gray=-1", "from 0 to 1"]),
        ("views.flip=2", ["views.flip=2", "from 0 to 1"]),
        ("views.hue=0.6", ["views.hue=0.6", "from 0 to 0.5"]),
        ("views.first.blur=1.5", ["views.first.blur=1.5", "from 0 to 1"]),
        ("views.second.solarize=-0.1", ["views.second.solarize=-0.1", "from 0 to 1"]),
        ("views.brightness=-1", ["views.brightness=-1"]),
        ("views.blur_sigma_min=3", ["views.blur_sigma_m"]),
        ("optim.momentum=-1", ["optim.momentum=-1"]),
        ("optim.momentum=1.5", ["optim.momentum=1.5"]),
        ("optim.final_lr=-1", ["optim.final_lr=-1"]),
        ("runtime.workers=-1", ["runtime.workers=-1"]),
        ("runtime.threads=-1", ["runtime.threads=-1"]),
    ],
)
def test_a_wrong_override_is_one_line_that_names_it(override, parts):
    message = refused(compose, [override])
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "text", ["a b", "2024", "1e5", "a(1)", "a=b", "a,b", "~/runs", "été", "[x]", "it's", 'say "x"']
)
def test_any_path_can_be_typed(text):
    config = compose([f"runtime.store={text}", f"data.root={text}"])
    assert (config.runtime.store, config.data.root) == (text, text)


@pytest.mark.parametrize("fingerprint", ["123456789012", "12345e678901", "000000000012"])
def test_a_fingerprint_that_looks_like_a_number_is_text(fingerprint):
    assert compose([f"data.fingerprint={fingerprint}"]).data.fingerprint == fingerprint


def test_keys_are_the_values_of_the_schema():
    assert set(key_names(Config)) == {name for name, _, _ in leaves(Config)} - {"recipe"}


@pytest.mark.parametrize(
    "changes",
    [
        {"optim.lr": 0.3},
        {"optim.weight_decay": 0.02},
        {"optim.weight_decay": 0.02, "optim.final_weight_decay": 0.5},
        {"optim.final_weight_decay": 0.5},
        {"method.num_groups": 77, "method.direction": "both", "views.first.blur": 0.25},
        {"optim.epochs": 3},
        {"backbone.args.drop_path_rate": 0.1},
        {"data.root": "a folder, with = and {"},
        {"runtime.loggers": ["tensorboard"]},
    ],
)
def test_varied_values_are_what_compose_makes_of_them(changes: dict) -> None:
    whole = Base(["recipe=demo"])
    overrides = [f"{key}={value}" for key, value in changes.items()]
    assert whole.varied(changes) == compose(["recipe=demo", *overrides])
    assert whole.varied({}) == whole.config == compose(["recipe=demo"])  # and nothing of it stays


@pytest.mark.parametrize("recipe", options("recipe"))
def test_values_that_the_files_derive_are_copies(recipe: str) -> None:
    """Base follows copies alone: anything computed (${a.b}x) would be missed in the cells of a grid."""
    whole = Base([f"recipe={recipe}"])
    derived = [name for name in key_names(Config) if _is_derived(whole.tree, name)]
    assert {name for key in key_names(Config) for name in whole._copies_of(key)} == set(derived)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim.lrr": 1.0}, "unknown key 'optim.lrr'; nearest: optim.lr"),
        ({"optim.lr": "fast"}, "optim.lr='fast': float expected, not str"),
        ({"method.num_groups": 1}, "method.num_groups=1: must be at least 2"),
        ({"optim.lr": float("nan")}, "optim.lr=nan: finite numbers expected"),
        ({"optim": 1}, "unknown key 'optim'"),
    ],
)
def test_varied_values_are_checked(changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        Base(["recipe=demo"]).varied(changes)
