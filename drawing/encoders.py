"""Frames to a GIF or an MP4, one at a time, so that long answers fit into memory.

Both are written by PyAV, which brings its own encoders (GIF, H.264) and no system library. Without
it, an MP4 is VP9 by OpenCV: browsers play both. OpenCV's wheel lacks H.264, and does not even
import where the system lacks libGL, so it is the second choice, and imported only here.
"""

from __future__ import annotations

import importlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sinkscope.drawing.overlay import Pixels, refuse

Write = Callable[[Pixels], None]
CLEAR = 255  # a GIF's transparent colour
KINDS = (".gif", ".mp4")
LEAST_RATE = 8  # minimum frames per second of an MP4: some players do not play slower ones well


@contextmanager
def encoder(
    path: Path,
    width: int,
    height: int,
    seconds: float,
    samples: Sequence[Pixels] = (),
    keep: Pixels | None = None,
) -> Iterator[Write]:
    """Opens an animation; call the returned function with each frame.

    The complete file appears when the block ends; after an error there is none.

    Args:
        path: ending in .gif or .mp4.
        width, height: of each frame, both even.
        seconds: display time of each frame.
        samples: some frames, from which a GIF's colours are chosen; it needs at least one.
        keep: colours that a GIF must have, uint8 (n, 3), n at most 200.

    Raises:
        ValueError: another ending, or nothing on this machine can write an MP4; the text says why.
        OSError: the file cannot be written.
    """
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise refuse("output", str(path), f"a file ending in {' or '.join(KINDS)}")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        part = Path(folder) / path.name
        if kind == ".gif":
            with _gif(part, width, height, seconds, _palette(samples, keep)) as write:
                yield write
        else:
            with _mp4(part, width, height, seconds) as write:
                yield write
        part.replace(path)


# --- GIF ------------------------------------------------------------------------------------------


@contextmanager
def _gif(
    path: Path, width: int, height: int, seconds: float, palette: Image.Image
) -> Iterator[Write]:
    """A looping GIF of 255 colours. The encoder keeps changed pixels; the rest is transparent."""
    delay = max(2, round(seconds * 100))  # hundredths; browsers slow down faster ones
    colours = np.full((256, 4), 255, np.uint8)  # opacity, red, green, blue
    colours[:, 1:] = np.array(palette.getpalette(), np.uint8).reshape(256, 3)
    colours[CLEAR, 0] = 0
    av = _av_library()
    with av.open(str(path), "w", options={"loop": "0"}) as container:
        stream = container.add_stream("gif", rate=Fraction(100, delay))
        (stream.width, stream.height), stream.pix_fmt = (width, height), "pal8"
        count = itertools.count()

        def write(frame: Pixels) -> None:
            coded = Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
            codes = np.array(coded)
            codes[codes == CLEAR] = 0  # the same colour (`_palette`)
            picture = av.VideoFrame.from_ndarray((codes, colours), format="pal8")
            picture.pts, picture.time_base = next(count), Fraction(delay, 100)
            container.mux(stream.encode(picture))

        yield write
        container.mux(stream.encode(None))


def _av_library() -> Any:
    """PyAV.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module("av")
    except (ImportError, OSError) as error:  # OSError: a system library cannot be loaded
        raise ValueError(f"A GIF needs PyAV (pip install av): {error}.") from error


def _palette(samples: Sequence[Pixels], keep: Pixels | None) -> Image.Image:
    """255 colours, those to keep and others for the samples: a picture with that palette."""
    kept = b"" if keep is None else np.ascontiguousarray(keep, np.uint8).tobytes()
    thin = [sample[::3, ::3].reshape(-1, 3) for sample in samples]
    pixels = np.concatenate(thin)
    pixels = np.resize(pixels, (-(-len(pixels) // 512), 512, 3))
    free = CLEAR - len(kept) // 3
    found = Image.fromarray(pixels).quantize(free, Image.Quantize.MEDIANCUT).getpalette() or []
    palette = Image.new("P", (1, 1))
    # Filled up with the first colour, so that CLEAR is not a separate colour.
    colours = (kept + bytes(found))[: 3 * CLEAR]
    palette.putpalette(colours + colours[:3] * (256 - len(colours) // 3))
    return palette


# --- MP4 ------------------------------------------------------------------------------------------


@contextmanager
def _mp4(path: Path, width: int, height: int, seconds: float) -> Iterator[Write]:
    repeats = max(1, round(seconds * LEAST_RATE))
    rate = Fraction(repeats) / Fraction(seconds).limit_denominator(1000)
    missing = []
    for name, way in (("av", _by_av), ("cv2", _by_opencv)):
        try:
            library = importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError: a system library cannot be loaded
            missing.append(f"{name}: {error}")
            continue
        with way(library, path, (width, height), rate, repeats) as write:
            yield write
        return
    raise ValueError(
        "An MP4 needs PyAV (pip install av), or OpenCV with its system libraries (libGL); neither "
        f"can be used here ({'; '.join(missing)})."
    )


@contextmanager
def _by_av(
    av: Any, path: Path, size: tuple[int, int], rate: Fraction, repeats: int
) -> Iterator[Write]:
    """H.264, which all players support."""
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        rate = rate.limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate)
        (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "18", "threads": "2", "rc-lookahead": "10"}

        count = 0

        def write(frame: Pixels) -> None:
            nonlocal count
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture = picture.reformat(format="yuv420p")  # once for all repeats
            for _ in range(repeats):
                picture.pts, picture.time_base = count, 1 / rate
                container.mux(stream.encode(picture))
                count += 1

        yield write
        container.mux(stream.encode(None))


@contextmanager
def _by_opencv(
    cv2: Any, path: Path, size: tuple[int, int], rate: Fraction, repeats: int
) -> Iterator[Write]:
    """VP9, the only encoder in OpenCV's wheel that browsers play."""
    code = cv2.VideoWriter_fourcc(*"vp09")
    video = cv2.VideoWriter(str(path), code, float(rate), size)
    if not video.isOpened():
        raise ValueError("This OpenCV cannot write VP9, and there is no PyAV (pip install av).")

    def write(frame: Pixels) -> None:
        turned = np.ascontiguousarray(frame[..., ::-1])
        for _ in range(repeats):
            video.write(turned)

    try:
        yield write
    finally:
        video.release()
