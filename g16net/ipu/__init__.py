"""Training and serving on Graphcore IPUs: `settings` is pure Python, `session` needs the SDK."""
