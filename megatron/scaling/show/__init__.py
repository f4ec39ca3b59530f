"""Figures, pages and the terminal."""
