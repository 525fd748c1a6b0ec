"""Optuna over mixers and recipes: what a search is (`definition`, `space`), its study and trials, who trains them."""
