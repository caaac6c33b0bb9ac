"""The frozen base model, read from original ACE-Step checkpoint folders."""
