"""What a network becomes to be trained: wider, or of another design."""
