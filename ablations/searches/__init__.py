"""Searches of Optuna over mixers and recipes, one small file each; what a search is: `sweeps/search.py`."""
