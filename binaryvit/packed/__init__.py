"""Models as they are deployed: one-bit files, exact inference by XNOR and popcount, export and classification."""
