"""What a head is worth: metrics, intervals, attributions and mistakes."""
