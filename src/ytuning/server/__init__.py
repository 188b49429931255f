"""Many tasks answered over HTTP from one encoder pass; start it with ``ytuning serve``."""
