"""Tables of runs: what a table file says, which runs that means, and running them."""
