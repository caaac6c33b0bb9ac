"""The trained part: one small contract, one file per family."""
