"""From timm's names to those of detectron2, torchvision and mmsegmentation, strictly; and the command that does it.

``python transfer/convert.py --ckpt CKPT --to detectron2|torchvision|mmseg --out FILE``
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # then a checkout's packages are to be found, and not the files of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from smog.errors import RunError, UsageError, exit_code
from transfer.names import INDEX, Rule, fresh, rules

if TYPE_CHECKING:
    from torch import Tensor, nn

    from transfer.spec import Spec

TARGETS = ("detectron2", "torchvision", "mmseg")
TABLE = "relative_position_bias_table"
SHOWN = 4


def convert(state: Mapping[str, Tensor], spec: Spec, target: str) -> dict[str, Tensor]:
    """Return the weights of a timm backbone under the names of another framework.

    Raises RunError that lists the keys where one is not in the table (a head or a projector, say) or two have one name.
    """
    table = rules(spec, target)
    found: dict[str, Tensor] = {}
    unknown, doubled = [], []
    for name, values in state.items():
        rule = next((rule for rule in table if re.fullmatch(rule.ours, name)), None)
        if rule is None:
            unknown.append(name)
        elif rule.theirs:
            theirs = re.sub(rule.ours, rule.theirs, name)
            doubled += [theirs] if theirs in found else []
            found[theirs] = _changed(rule, values)
    if unknown or doubled:
        raise RunError("; ".join(_lists({"not part of the backbone": unknown, "twice": doubled})))
    return found | _indices(found, spec, target)


def _changed(rule: Rule, values: Tensor) -> Tensor:
    return rule.change(values).contiguous() if rule.change else values


def _indices(found: Mapping[str, Tensor], spec: Spec, target: str) -> dict[str, Tensor]:
    """Swin's table of positions is found by an index that follows from the window; timm does not keep it, others do."""
    from timm.models.swin_transformer import get_relative_position_index

    from transfer.spec import Swin

    if not isinstance(spec, Swin):
        return {}
    index = get_relative_position_index(spec.window, spec.window)
    index = index.flatten() if target == "torchvision" else index
    return {name.replace(TABLE, INDEX): index.clone() for name in found if name.endswith(TABLE)}


def load(module: nn.Module, state: Mapping[str, Tensor], fresh: Sequence[str] = ()) -> None:
    """Load weights so that every one is used and all of ``module`` is filled, but for names that match ``fresh``.

    Raises RunError that lists what is missing, unknown or of another shape; nothing is loaded then.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state and not any(re.fullmatch(free, name) for free in fresh)]
    unknown = [name for name in state if name not in own]
    shapes = {name: (tuple(values.shape), tuple(own[name].shape)) for name, values in state.items() if name in own}
    other = [f"{name} {theirs} instead of {ours}" for name, (theirs, ours) in shapes.items() if theirs != ours]
    if missing or unknown or other:
        lists = _lists({"missing": missing, "unknown": unknown, "of another shape": other})
        raise RunError(f"the weights do not fit {type(module).__name__}; " + "; ".join(lists))
    module.load_state_dict({**own, **state})


def _lists(kinds: Mapping[str, Sequence[str]]) -> list[str]:
    lists = []
    for kind, names in kinds.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        lists += [f"{len(names)} {kind}: {', '.join(names[:SHOWN])}{more}"] if names else []
    return lists


def transferred(
    network: nn.Module, target: str, size: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[nn.Module, dict[str, Tensor], list[dict[str, Any]]]:
    """Return the backbone of another framework with a timm network's weights, those weights under its names, and the
    rows of the proof (see ``parity``).

    detectron2's ViT has no class token: there the proof is against the source without its own. Raises UsageError for a
    network that does not convert or a framework that is not there, RunError where keys, shapes or maps differ.
    """
    from transfer.bodies import bodies_of
    from transfer.parity import parity, without_token
    from transfer.spec import Vit, spec_of

    spec = spec_of(network)
    state = convert(network.state_dict(), spec, target)
    bodies = bodies_of(target)
    body = bodies.build(spec)
    load(body, state, fresh(spec, target))
    tokenless = isinstance(spec, Vit) and spec.token and target == "detectron2"
    source = without_token(network) if tokenless else network
    body.eval()
    return body, state, parity(source, spec, lambda images: bodies.stages(body, images), size, mean, std)


def write(path: Path, state: Mapping[str, Tensor], target: str) -> None:
    """Write weights, atomically: what ends in .safetensors as such, .pth as torch.load reads with weights_only.

    detectron2's checkpointer reads .pth, under the key "model". UsageError for another ending.
    """
    check_ending(path, target)
    import safetensors.torch
    import torch

    from smog.store import write_atomically

    plain = {name: values.detach().cpu().contiguous().clone() for name, values in state.items()}
    if path.suffix == ".safetensors":
        content = safetensors.torch.save(plain, metadata={"format": "pt"})
        write_atomically(path, lambda file: file.write(content))
    else:
        held: Any = {"model": plain} if target == "detectron2" else plain
        write_atomically(path, lambda file: torch.save(held, file))


def check_ending(path: Path, target: str) -> None:
    """Refuse a file that the framework's loader does not read."""
    endings = (".pth",) if target == "detectron2" else (".safetensors", ".pth")
    if path.suffix not in endings:
        raise UsageError(f"--out {path}: for {target} a file that ends in {' or '.join(endings)}")


# ---- the command ----


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 keys or maps differ, 2 wrong use."""
    return exit_code(_main, list(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: list[str]) -> int:
    from argparse import ArgumentParser

    parser = ArgumentParser(
        "convert.py",
        description="Write a checkpoint's backbone for another framework, after the proof that it is the same.",
    )
    parser.add_argument("--ckpt", required=True, help="a run (id, folder or last.pt), an export or a stranger's file")
    parser.add_argument("--to", required=True, choices=TARGETS)
    parser.add_argument("--out", required=True, type=Path, help="FILE.pth, or FILE.safetensors but for detectron2")
    parser.add_argument("--store", default="runs", help="folder of the runs (default: runs)")
    parser.add_argument("--model", default="", help="a timm name, where the file does not tell its architecture")
    given = parser.parse_args(arguments)
    check_ending(given.out, given.to)
    from smog.pretrained import open_pretrained
    from transfer.parity import as_text

    source = open_pretrained(given.ckpt, given.store, given.model)
    _, state, rows = transferred(source.network, given.to, source.size, source.mean, source.std)
    write(given.out, state, given.to)
    print(as_text(rows))
    result = {"out": str(given.out), "to": given.to, "keys": len(state), "mean": source.mean, "std": source.std}
    print(json.dumps({**result, "origin": source.origin, "parity": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
