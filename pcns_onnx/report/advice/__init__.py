"""What to do with a model, before anything is done: candidates, what they would lose, and which one to take."""
