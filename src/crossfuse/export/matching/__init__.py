"""Reading a written-out attention: around its softmax, by the factors of its axes."""
