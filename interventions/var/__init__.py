"""Visual Attention Redistribution (VAR, arXiv 2503.03321).

One file per step of the method: `selection` (which heads and query rows), `redistribute` (new
attention probabilities), `correction` (the same change made to a fused kernel's output, without the
probabilities), `report` (what the method did, in numbers): pure tensor functions that know no
model. `checks` and `parameters` prepare the settings. `var` is what is asked for; it becomes an
`intervention` in each run.
"""
