"""What a dataset asks of a model, and what is inside an adapter, a checkpoint or a dataset."""
