"""From features to a fitted head: recipes, losses, batches, joint training and calibration."""
