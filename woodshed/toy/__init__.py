"""A tiny world to try everything in: synthesized songs and random checkpoints in the original layout."""
