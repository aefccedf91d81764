"""How many scans a JPEG has: each costs a pass over all of its pixels, and a few bytes of the file.

A progressive JPEG comes in about 10 scans, and programs that search for the best order write up to
20. The format has no limit: 400 scans of 25 megapixels fit in 130 kB, and take half a minute.
"""

from __future__ import annotations

import re

_ALONE = frozenset((0x01, 0xD8, *range(0xD0, 0xD8)))  # markers without a length: TEM, SOI, RST
_EOI, _SOS = 0xD9, 0xDA
# In coded data, 0xFF is followed by 0 or by a restart number; anything else is a marker.
_NEXT = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)


def scan_count(data: bytes, most: int) -> int:
    """How many scans the first picture of a JPEG file has (ITU T.81, B.1.1 and B.2).

    Args:
        data: the file. Where it breaks off or makes no sense, counting ends.
        most: counting ends above this.
    """
    count, at = 0, 0
    while (match := _NEXT.search(data, at)) is not None and match[1][0] != _EOI:
        marker, at = match[1][0], match.end()
        if marker in _ALONE:
            continue
        if marker == _SOS:
            count += 1
            if count > most:
                break
        at += int.from_bytes(data[at : at + 2], "big")  # its segment, thumbnails with scans in it
    return count
