"""Where time goes: nodes, their work, what the machine could attain."""
