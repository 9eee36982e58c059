"""One file per method, each reading like its paper. Methods share the engine and never import each other."""
