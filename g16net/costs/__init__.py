"""What a network costs, counted and estimated: pure Python, from the tables in `models`."""
