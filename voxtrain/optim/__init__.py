"""How weights follow their gradients: the optimizer's rule with its hyperparameters, and the learning rate's course."""
