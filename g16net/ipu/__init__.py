"""Training and serving on Graphcore IPUs, for which `session` needs the SDK. Their settings are `config.ipu`."""
