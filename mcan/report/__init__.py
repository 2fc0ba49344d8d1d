"""What the runs of a table say: means, files, plots and a page of results."""
