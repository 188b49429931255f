"""Units of work over many files and machines: the plan of a run, and what is done in a unit."""
