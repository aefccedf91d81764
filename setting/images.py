"""What an image from outside may be."""

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
        "Width x height, in millions; above it the file is refused unread.",
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
        "An image with more pixels is scaled down to so many millions as it is read. 12.845056 is "
        "what Qwen2.5-VL's processor can use (max_pixels); the page takes what the loaded model "
        "can use where that is less, but not less than it shows (2.56).",
        low=0.001,
        high=1000.0,
    )
    max_scans: int = setting(
        32, "Scans of a progressive JPEG; programs write 10 to 20.", low=1, high=10_000
    )
    decode_seconds: float = setting(
        30.0, "How long the page lets one image be decoded.", low=0.1, high=3600.0, unit="seconds"
    )
    decode_megabytes: int = setting(
        1024,
        "Memory that the page's process for decoding may take (where the system has such limits).",
        low=256,
        high=10**6,
        unit="megabytes",
    )

    def __post_init__(self) -> None:
        check(self)
