"""Run and study folders -> one self-contained web page. Reads files only; knows nothing of models or tensors."""
