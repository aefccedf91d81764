"""Limits of images from outside."""

from __future__ import annotations

from dataclasses import dataclass

from sinkscope.setting.checks import check
from sinkscope.setting.field import explained, setting


@explained
@dataclass(frozen=True)
class ImageLimits:
    """Limits of an untrusted image, checked before any pixel is decoded, and of decoding it."""

    max_megapixels: float = setting(
        50.0,
        "Width x height, in millions; a larger image is refused before decoding.",
        low=0.001,
        high=1000.0,
    )
    max_bytes: int = setting(50_000_000, "Size of the file.", low=1, high=10**12, unit="bytes")
    max_aspect: float = setting(
        199.0,
        "Longer side divided by the shorter (the model's processor refuses 200 and more).",
        low=1.0,
    )
    kept_megapixels: float = setting(
        12.845056,
        "An image with more pixels, in millions, is scaled down to this size while it is read. "
        "12.845056 is what Qwen2.5-VL's processor can use (max_pixels); if the loaded model can "
        "use less, the page keeps less, but at least the size that it shows (2.56).",
        low=0.001,
        high=1000.0,
    )
    max_scans: int = setting(
        32, "Scans of a progressive JPEG; programs write 10 to 20.", low=1, high=10_000
    )
    decode_seconds: float = setting(
        30.0, "Time limit of the page for decoding one image.", low=0.1, high=3600.0, unit="seconds"
    )
    decode_megabytes: int = setting(
        1024,
        "Memory limit of the page's decoding process (on systems with such limits).",
        low=256,
        high=10**6,
        unit="megabytes",
    )

    def __post_init__(self) -> None:
        check(self)
