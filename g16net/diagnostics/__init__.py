"""Looks at data and at trained networks. May import all but export, benchmark, sweep and cli."""
