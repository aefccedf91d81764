"""Results of `benchmarks.capture` as text and as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MEGABYTE = 1 << 20
COLOURS = {"plain": "0.5", "ours": "C0", "graph": "C2", "hooks": "C1", "output_attentions": "C3"}
LABELS = {
    "plain": "plain SDPA",
    "again": "plain SDPA once more",
    "ours": "SinkScope, loop",
    "graph": "SinkScope, graph",
    "hooks": "eager + hooks",
    "output_attentions": "eager + output_attentions",
}


def as_table(result: dict[str, Any]) -> str:
    """The whole result for a terminal."""
    lines = [
        f"Capture, {result['shape']} shape: {result['layers']} layers, {result['heads']} heads, "
        f"{result['dtype']}, {result['tokens']} new tokens",
        f"{result['device']}, {result['threads']} CPU threads, torch {result['torch']}, "
        f"{result['repeats']} rounds",
        "",
        "Ratios to plain SDPA: median of the rounds (of the fastest runs)",
        f"{'N':>6}  {'way':<26} {'first token':>15} {'each token':>15} {'whole run':>15}"
        f" {'seconds':>8}",
    ]
    for row in result["lengths"]:
        for name, entry in row["ways"].items():
            left = f"{row['length']:>6}  {LABELS[name]:<26}"
            if "skipped" in entry:
                lines.append(f"{left} not run: it {entry['skipped']}")
                continue
            cells = [
                f"{entry[f'{part}_ratio']:.3f} ({entry[f'{part}_ratio_of_fastest']:.3f})"
                for part in ("first", "each", "total")
            ]
            right = " ".join(f"{cell:>15}" for cell in cells)
            lines.append(f"{left} {right} {entry['total_seconds']:>8.2f}")
        noise = "unknown" if row["noise"] is None else f"{100 * row['noise']:.1f} %"
        same = "the same tokens" if row["same_tokens"] else "OTHER TOKENS"
        lines.append(
            f"{'':>6}  two plain runs differ by {noise}; plain and ours gave {same}; forecast "
            f"{row['forecast_seconds']:.2f} s"
        )
    lines += ["", *_token_lines(result)]
    lines += ["", "Seconds beyond plain per 1000 additional prompt tokens"]
    for name, slope in result["slopes"].items():
        lines.append(f"  {LABELS[name]:<26} {'one length' if slope is None else f'{slope:+.3f}'}")
    if "memory" in result:
        lines += ["", *_memory_lines(result["memory"])]
    reading = result["reading"]
    lines += [
        "",
        f"One token's map from a file ({reading['trace']})",
        f"  mean over layers and heads    {1e3 * reading['mean_seconds']:.2f} ms, "
        f"{1e3 * reading['open_and_mean_seconds']:.2f} ms with opening the file",
        f"  from all layers and heads     {1e3 * reading['all_layers_and_heads_seconds']:.2f} ms",
    ]
    return "\n".join(lines)


def _token_lines(result: dict[str, Any]) -> list[str]:
    """The time of a token with its lower bound, and its device operations."""
    floor = result["floor"]
    lines = [
        f"A token: reading the weights once ({floor['weight_bytes'] / 1e9:.2f} GB at "
        f"{floor['bandwidth'] / 1e9:.0f} GB/s, copied) takes {1e3 * floor['seconds']:.2f} ms"
    ]
    for row in result["lengths"]:
        for name, entry in row["ways"].items():
            if "skipped" in entry:
                continue
            asks = ", ".join(f"{count:g} {what}" for what, count in entry["asks"].items())
            lines.append(
                f"{row['length']:>6}  {LABELS[name]:<26} {1e3 * entry['each_seconds']:>9.2f} ms, "
                f"{entry['each_seconds'] / floor['seconds']:>6.1f} x that; {asks}"
            )
    return lines


def _memory_lines(memory: dict[str, Any]) -> list[str]:
    lines = [f"Peak memory of one run, N = {memory['length']} (MB; each in its own process)"]
    if "skipped" in memory:
        return [*lines, f"  not measured: {memory['skipped']}"]
    for name, peak in memory["peak_bytes"].items():
        extra = memory.get("extra_bytes", {}).get(name)
        beyond = "" if extra is None else f"   beyond plain {extra / MEGABYTE:>9.1f}"
        shown = "failed" if peak is None else f"{peak / MEGABYTE:>9.1f}"
        lines.append(f"  {LABELS[name]:<26} {shown}{beyond}")
    lines.append(
        f"  of ours, the trace itself  {memory['payload_bytes'] / MEGABYTE:>9.1f}"
        f"   forecast     {memory['forecast_extra_bytes'] / MEGABYTE:>9.1f}"
    )
    lines.append(
        "  output_attentions, the prompt's matrices alone      "
        f"{memory['forecast_output_attentions_bytes'] / MEGABYTE:>9.1f}"
    )
    return lines


def plot(result: dict[str, Any], path: Path) -> None:
    """Ratios over prompt length, and peak memory beyond plain."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    memory = result.get("memory", {}).get("extra_bytes")
    figure, axes = pyplot.subplots(1, 3 if memory else 2, figsize=(12 if memory else 8, 3.6))
    for axis, part, title in (
        (axes[0], "first", "first token (prefill)"),
        (axes[1], "total", "whole run"),
    ):
        for name, colour in COLOURS.items():
            points = [
                (row["length"], row["ways"][name][f"{part}_ratio"])
                for row in result["lengths"]
                if "skipped" not in row["ways"][name]
            ]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", color=colour, label=LABELS[name])
        axis.set_xlabel("prompt tokens")
        axis.set_ylabel("time / plain SDPA")
        axis.set_title(title)
        axis.set_ylim(bottom=0)
    axes[0].legend(fontsize="small")
    if memory:
        names = [name for name, extra in memory.items() if extra is not None]
        bars = [max(0.1, memory[name] / MEGABYTE) for name in names]
        axes[2].bar(
            [LABELS[name].replace(" + ", "\n+ ") for name in names],
            bars,
            color=[COLOURS[name] for name in names],
        )
        axes[2].set_yscale("log")
        axes[2].tick_params(axis="x", labelsize="x-small")
        axes[2].set_ylabel("peak memory beyond plain, MB")
        axes[2].set_title(f"N = {result['memory']['length']}")
    figure.suptitle(f"{result['shape']} shape, {result['dtype']}, {result['device']}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
