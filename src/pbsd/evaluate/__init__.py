"""`pbsd evaluate`: a model on a benchmark, resumable, with intervals; and two results compared by problem."""
