"""From features to a fitted head: recipes, batches, joint training and calibration."""
