"""Consumers of training events: the journal, the terminal view, TensorBoard."""
