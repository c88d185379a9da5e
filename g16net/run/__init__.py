"""A run: its folder, its devices, and its objects made from its config.

May import config, data, models, optim and weights.
"""
