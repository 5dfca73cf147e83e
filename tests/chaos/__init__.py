"""Chaos: real jobs under real servers that are killed, frozen and emptied at random; then what happened is checked."""
