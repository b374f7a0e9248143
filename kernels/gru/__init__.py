"""The GRU's loop over time."""
