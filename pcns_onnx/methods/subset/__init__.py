"""Methods that keep some channels as they are and solve their readers again."""
