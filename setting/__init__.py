"""What a setting is: a field of a frozen dataclass that declares its help, range and unit once.

    @explained
    @dataclass(frozen=True)
    class Mine:
        share: float = setting(0.5, "Part that is kept.", low=0, high=1)

        def __post_init__(self) -> None:
            check(self)

The checks (`check`), the command line's options (`cli.options`), the arguments of the API
(`web.api.arguments`) and the page's controls (`web.components.controls`) are all made from these
fields, so a new setting is just a new field. docs/architecture.md, "A setting", has all of it.
"""

from __future__ import annotations

from sinkscope.setting.checks import allowed_words, check, checked, refuse, shown
from sinkscope.setting.field import (
    LISTS,
    REQUIRED,
    Setting,
    explained,
    like,
    setting,
    settings_of,
    user_settings,
)
from sinkscope.setting.heads import Heads, heads_text, layer_heads, list_text
from sinkscope.setting.reading import index_list, read, read_all, whole

__all__ = [
    "LISTS",
    "REQUIRED",
    "Heads",
    "Setting",
    "allowed_words",
    "check",
    "checked",
    "explained",
    "heads_text",
    "index_list",
    "layer_heads",
    "like",
    "list_text",
    "read",
    "read_all",
    "refuse",
    "setting",
    "settings_of",
    "shown",
    "user_settings",
    "whole",
]
