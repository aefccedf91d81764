"""Visual Attention Redistribution (VAR): the pure functions, under the names that notebooks use."""

from __future__ import annotations

from redistribution.redistribute import redistribute
from redistribution.selection import select_rows

__all__ = ["redistribute", "select_rows"]
