"""Things edgempi ships besides code: the models that it trains itself."""
