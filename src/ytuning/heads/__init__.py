"""Label heads, pure modules on token features."""
