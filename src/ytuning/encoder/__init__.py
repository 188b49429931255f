"""The frozen encoder: found, loaded, identified, and how its hidden states are computed."""
