"""Corpora of known entropy: stationary sources whose floor is known, and an oracle that scores any window exactly."""
