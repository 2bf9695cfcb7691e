"""Bundles behind servers: what Triton, Ray Serve and bulk jobs share, and what each of them
needs."""
