"""Driving scenes: recorded or simulated traffic of some seconds with its map, and the worlds made of them."""
