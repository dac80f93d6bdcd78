"""How a model is trained: one loop with its hyper-parameters as data, for one model or a stack of many at once."""
