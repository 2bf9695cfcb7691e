"""What Python users call: `export`, `build`, `verify` and `profile`, and how a text becomes a
model."""
