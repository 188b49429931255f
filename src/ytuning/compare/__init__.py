"""Y-Tuning beside its opponents on the same rows."""
