"""Songs to tensors to batches."""
