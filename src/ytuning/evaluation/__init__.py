"""What a head is worth on labelled rows: reports, attributions and mistakes."""
