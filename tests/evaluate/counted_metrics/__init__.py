"""Small metrics of the tests' own, named by their dotted names."""
