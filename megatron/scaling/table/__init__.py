"""What runs and other tools recorded, as one table of rows that may be compared."""
