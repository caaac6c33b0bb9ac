"""How settings are asked: one question at a time, everything read out of their declarations. Imports no command."""
