"""How likely a trained model finds a text, and under which of the distributions that it can be read as."""
