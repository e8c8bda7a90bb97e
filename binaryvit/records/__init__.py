"""What a run leaves on disk, where it came from, and the names of its files. Nothing is trained or drawn."""
