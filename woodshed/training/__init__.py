"""The training run, as a stream of events; this room never prints."""
