"""Engines: what runs the network of a backbone when images are scored; `engine.use_engine` lets one do it."""
