"""Options that several benchmarks share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

ShapeName = Literal["tiny", "small", "3b", "7b"]
DTypeName = Literal["auto", "float32", "bfloat16"]

Shape = Annotated[ShapeName, typer.Option(help="Sizes of the model, which has random weights.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
DType = Annotated[DTypeName, typer.Option(help="auto: float32 on a CPU, bfloat16 on a GPU.")]
Lengths = Annotated[str, typer.Option(help="Prompt lengths in tokens.", metavar="LIST")]
NewTokens = Annotated[int, typer.Option(min=2, max=4096, help="New tokens per run.")]
Rounds = Annotated[int, typer.Option(min=1, max=999, help="Rounds.")]
Threads = Annotated[int, typer.Option(min=1, max=1024, help="CPU threads of torch.")]
Memory = Annotated[bool, typer.Option(help="Measure peak memory.")]
Switch = Annotated[
    float, typer.Option(min=0, max=1000, help="Interpreter's switch interval, ms. 0: the app's.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")]
Warmups = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=99,
        help="Maximum of plain runs before the first round; they end when two take the same time. "
        "[default: 10 on a GPU, 2 on a CPU]",
        show_default=False,
    ),
]
