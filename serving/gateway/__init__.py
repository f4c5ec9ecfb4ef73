"""The gateway: Envoy in front of TensorFlow Serving, its configuration, tokens, and the way to it.

`traffic` is the state, one file swapped whole: which version answers whom. `routes` and `bootstrap` render it and the
settings for Envoy, `filter.lua` runs inside, `tokens` says who may ask, `process` starts it and talks to it.
"""
