"""A trained student as files that need nothing of this project: weights, graphs, and what describes them."""
