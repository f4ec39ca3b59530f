"""What other programs logged, as one table of points: a reader for each kind of file, one meaning for all of them."""
