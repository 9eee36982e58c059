"""How good a model is, with honest intervals: accuracy on held-out problems, clustered by problem."""
