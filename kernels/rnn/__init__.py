"""The simple recurrent network's loop over time."""
