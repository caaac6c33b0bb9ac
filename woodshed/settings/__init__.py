"""What can be chosen: every setting, declared once. Imports no torch."""
