"""Woodshed teaches the ACE-Step 1.5 music models a style: from a folder of songs to an adapter for every tool."""

__version__ = "0.1.0"
