"""From a dataset of runs to a statement: probabilities, thresholds, scaling laws and figures."""
