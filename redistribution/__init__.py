"""Visual Attention Redistribution (VAR, arXiv 2503.03321) as pure tensor functions.

One file a step of the method: `sinks` (which tokens), `selection` (which heads and query rows),
`redistribute` (new attention probabilities), `correction` (the same change made to a fused kernel's
output, without the probabilities), `fused` (kernels that also give the log-sum-exp) and `report`
(what the method did, in numbers). Nothing here knows a model.
"""
