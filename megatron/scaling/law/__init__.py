"""Forms of loss laws, and fits of them with intervals."""
