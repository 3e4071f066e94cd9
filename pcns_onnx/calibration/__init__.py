"""What the data says: observers, which take batch after batch in, and the statistics that come out."""
