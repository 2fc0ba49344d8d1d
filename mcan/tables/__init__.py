"""Tables of runs: what a table file states, which runs it needs, running and writing them."""
