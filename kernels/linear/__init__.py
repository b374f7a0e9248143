"""The matrix product with a bias."""
