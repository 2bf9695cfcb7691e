"""What every room may use: standard library and NumPy only."""
