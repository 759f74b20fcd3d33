"""What a pretraining run will need, said before it starts: memory of a GPU, steps, hours, cost."""
