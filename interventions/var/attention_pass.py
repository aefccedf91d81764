"""What an attention layer was given and gave in a pass, and which of its keys are which."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sinkscope.interventions.var.selection import KeyGroups


@dataclass(frozen=True)
class AttentionPass:
    """One layer's attention. The queries are the last Q of the K positions.

    Attributes:
        query: (B, H, Q, D), after rotary embedding.
        key, value: (B, Hkv, K, D), H a multiple of Hkv.
        output: (B, H, Q, D), the fused kernel's on these.
        scaling: factor on the scores.
        mask: None (causal: a query at position p sees keys 0 .. p), or bool (True: may be seen) /
            additive float (1 or B, 1 or H, Q, K).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    scaling: float
    mask: Tensor | None = None

    def row(self, row: int) -> AttentionPass:
        """That of one batch row, B = 1."""
        one, mask = slice(row, row + 1), self.mask
        return AttentionPass(
            self.query[one],
            self.key[one],
            self.value[one],
            self.output[one],
            self.scaling,
            mask[one] if mask is not None and len(mask) > 1 else mask,
        )


@dataclass(frozen=True)
class MarkedKeys:
    """Which keys are sinks and which are vision tokens.

    Attributes:
        sinks, vision: (B, K) bool, on the device of the keys.
        groups: made of them; None where they are not made yet.
        on_host: both on the CPU, where they are there already.
    """

    sinks: Tensor
    vision: Tensor
    groups: KeyGroups | None = None
    on_host: tuple[Tensor, Tensor] | None = None

    def row(self, row: int) -> MarkedKeys:
        """Those of one batch row, (1, K)."""
        one = slice(row, row + 1)
        return MarkedKeys(
            self.sinks[one],
            self.vision[one],
            None if self.groups is None else self.groups.row(row),
            None if self.on_host is None else (self.on_host[0][one], self.on_host[1][one]),
        )
