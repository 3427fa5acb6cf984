"""What a customer will do next, from purchases alone: the same in training and in serving."""
