"""The cost of a run, as lines and tables for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tabulate import tabulate

NOTE = """\
Time is FLOPs over the rate: no waiting for images, no evaluation, no communication; small images keep no GPU busy.
Memory is without workspaces, what only lives within a layer, and what an allocator wastes: fits means 85 % at most."""


def as_text(found: dict[str, Any]) -> str:
    """Return what smog.cost.cost found."""
    head = f"{found['what']}: {found['recipe']}, gpus={found['gpus']}, {found['micro_batch']} images at once on each"
    lines = "\n".join(f"{name:12}{text}" for name, text in _lines(found))
    return "\n\n".join([head, lines, _memory(found["memory"]), _devices(found["devices"]), NOTE])


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    plan, flops = found["schedule"], found["flops"]
    yield "parameters", ", ".join(f"{name.replace('_', ' ')} {si(n)}" for name, n in found["parameters"].items())
    yield "images", f"{plan['train_images']:,} ({plan['train_images_from']})"
    yield "schedule", f"{plan['steps']:,} steps of {plan['batch']:,} images: {plan['epochs']:g} epochs"
    yield "", f"{plan['effective_epochs']:.4g} effective epochs, counting the area of all crops in global ones"
    yield "seen", f"{si(plan['images_seen'], ' images')}, {si(plan['crops_seen'], ' crops')}"
    sides = (f"{si(value, 'FLOP')} at {side} px" for side, value in flops["backbone_forward"].items())
    yield "backbone", f"forward {', '.join(sides)}"
    yield (
        "a step",
        f"{si(flops['step'], 'FLOP')}: {si(flops['image'])} an image, {si(flops['groups'])} on the groups",
    )
    yield "the run", si(flops["run"], "FLOP")


def _memory(memory: dict[str, dict[str, int]]) -> str:
    names = next(iter(memory.values()), {})
    rows = [[name.replace("_", " "), *(si(parts[name], "B") for parts in memory.values())] for name in names]
    return tabulate(rows, ("memory of each", *memory), "plain", colalign=("left", *["right"] * len(memory)))


def _devices(devices: list[dict[str, Any]]) -> str:
    rows = []
    for row in devices:
        share = f"{row['utilisation']:.0%} of {row['peak_tflops']:g}" if row["peak_tflops"] else ""
        fits = {True: "yes", False: "no", None: ""}[row["fits"]]
        rows.append((row["name"], row["precision"] or "-", share, fits, duration(row["hours"]), row["source"]))
    return tabulate(rows, ("device", "in", "TFLOP/s", "fits", "time", "rate from"), "plain", disable_numparse=True)


def duration(hours: float | None) -> str:
    """Return hours in words: ``2.5 days``, ``3 h``, ``20 min``, ``8 s``."""
    if hours is None:
        return "-"
    for unit, length in (("days", 24.0), ("h", 1.0), ("min", 1 / 60)):
        if hours >= 2 * length:
            return f"{hours / length:,.3g} {unit}"
    return f"{hours * 3600:.2g} s"


def si(value: float, unit: str = "") -> str:
    """Return a number with three digits and the letter of its size: ``23.5 MB``."""
    for power, letter in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {letter}{unit}"
    return f"{value:g} {unit}".rstrip()
