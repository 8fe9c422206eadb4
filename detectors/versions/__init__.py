"""Versions of a profile in a store: what was added, which one is active, and how each came to be."""
