"""The search over recipes."""
