"""Fetching of the demo's pictures and small models into the cache folder. Training imports nothing of it."""
