"""Speed and memory of networks and of the input against peers, and estimates beside them.

May import all but export, sweep and cli.
"""
