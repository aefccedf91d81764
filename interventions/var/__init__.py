"""Visual Attention Redistribution (VAR, arXiv 2503.03321).

One file a step of the method: `selection` (which heads and query rows), `redistribute` (new
attention probabilities), `correction` (the same change made to a fused kernel's output, without the
probabilities), `report` (what the method did, in numbers): pure tensor functions that know no
model. `intervention` applies them to a run. Which tokens are sinks says `models.sink_score`.
"""
