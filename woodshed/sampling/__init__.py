"""Music from the model."""
