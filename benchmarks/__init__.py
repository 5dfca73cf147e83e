"""Measurements of the whole fabric and of its parts. Reads no private door: what it measures is what users get."""
