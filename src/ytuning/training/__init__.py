"""Features become a fitted head: recipes, batches, joint training and calibration."""
