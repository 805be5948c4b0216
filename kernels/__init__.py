"""The physics: gradient descent on phase retrieval, in NumPy and SciPy alone."""
