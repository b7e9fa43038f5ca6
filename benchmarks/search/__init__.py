"""Search for hyper-parameters, with the same budget for every model."""
