"""A latency report: its schema, comparisons, and what people see of it."""
