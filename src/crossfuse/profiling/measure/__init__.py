"""How time is measured: rounds, intervals, load, cold starts."""
