"""The tables of the paper and of its ablations: rows, recipes, pretraining, runs."""
