"""What is read from files of images, texts and tables, and how it becomes arrays."""
