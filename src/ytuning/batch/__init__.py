"""Units of work over many files and machines: the plan, the work of a unit, and the engines that run units."""
