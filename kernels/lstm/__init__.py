"""The LSTM's loop over time."""
